"""Which backend runs, under autocast, under torch.compile, after inference mode; and causality."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sink_kernels import NORMALIZERS, STATISTICS, attention

BACKENDS = [(name, "reference") for name in NORMALIZERS] + [(name, "flash") for name in NORMALIZERS[:3]]


@pytest.mark.parametrize(("normalizer", "backend"), BACKENDS)
def test_a_later_token_changes_nothing_before_it(normalizer, backend, make_call):
    call = make_call(normalizer, gate="element")
    out, stats = call.run(attention, backend=backend, stats=STATISTICS)
    for tensor in (call.q, call.k, call.v, call.gate):
        tensor[:, :, 20:] += 3.0
    changed, changed_stats = call.run(attention, backend=backend, stats=STATISTICS)
    assert torch.equal(out[:, :, :20], changed[:, :, :20])
    assert not torch.equal(out, changed)
    for name in set(STATISTICS) - {"key_mass"}:
        torch.testing.assert_close(stats[name][..., :20], changed_stats[name][..., :20])


@pytest.mark.parametrize(("normalizer", "backend"), BACKENDS)
def test_a_key_outside_the_window_changes_nothing(normalizer, backend, make_call):
    call = make_call(normalizer, window=5)
    out = call.run(attention, backend=backend)
    call.k[:, :, 10] += 3.0
    call.v[:, :, 10] += 3.0
    changed = call.run(attention, backend=backend)
    same = [*range(10), *range(15, 33)]
    torch.testing.assert_close(out[:, :, same], changed[:, :, same], rtol=0, atol=1e-6)
    assert all(not torch.equal(out[:, :, i], changed[:, :, i]) for i in range(10, 15))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_auto_takes_flash_where_it_can(normalizer, softcap, make_call, monkeypatch):
    from sink_kernels import flash_cpu

    taken = []
    run = flash_cpu.attend
    monkeypatch.setattr(flash_cpu, "attend", lambda *args: (taken.append("flash"), run(*args))[1])
    make_call(normalizer, softcap=softcap).run(attention)
    assert taken == (["flash"] if normalizer in NORMALIZERS[:3] else [])


@pytest.mark.parametrize("normalizer", ["sigmoid", "clipped_softmax"])
def test_flash_rejects_unsupported_calls_with_an_alternative(normalizer, make_call):
    with pytest.raises(ValueError, match=f"{normalizer}.*reference"):
        make_call(normalizer).run(attention, backend="flash")


@pytest.mark.parametrize(("normalizer", "backend"), BACKENDS)
def test_autocast_casts_the_inputs(normalizer, backend, make_call):
    call = make_call(normalizer, gate="element").cast(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = call._replace(v=call.v.bfloat16())
        out, stats = mixed.run(attention, backend=backend, stats=STATISTICS)
    assert out.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in stats.values())
    rounded = make_call(normalizer, dtype=torch.bfloat16, gate="element")._replace(gate=call.gate)
    expected, expected_stats = rounded.run(attention, backend=backend, stats=STATISTICS)
    torch.testing.assert_close(out, expected, rtol=0.01, atol=0.01)
    for name in STATISTICS:
        torch.testing.assert_close(stats[name], expected_stats[name])
    out.float().square().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in call.tensors.values())
    with torch.autocast("cpu", torch.bfloat16):
        assert call.cast(torch.float64).run(attention, backend=backend).dtype == torch.float64


@pytest.mark.parametrize(
    ("normalizer", "backend", "dtype"),
    [
        ("softmax", "flash", torch.bfloat16),
        ("off_by_one", "flash", torch.float32),
        ("learnable_sink", "flash", torch.float32),
        ("learnable_sink", "flash", torch.bfloat16),
        ("sigmoid", "reference", torch.float32),
    ],
)
def test_compiles_into_one_graph(normalizer, backend, dtype, make_call):
    call = make_call(normalizer, gate="head", window=9).cast(dtype)
    names = list(call.tensors)

    def loss(*tensors):
        given = dict(zip(names, tensors, strict=True))
        out, stats = attention(
            given["q"].cos(),
            given["k"],
            given["v"],
            sink=given.get("sink"),
            gate=given["gate"],
            stats=("lse", "entropy"),
            backend=backend,
            **call.options,
        )
        return out.square().sum(), stats["entropy"]

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, entropy = loss(*call.tensors.values())
    compiled_value, compiled_entropy = compiled(*call.tensors.values())
    torch.testing.assert_close(compiled_value, value)
    torch.testing.assert_close(compiled_entropy, entropy)
    expected = torch.autograd.grad(value, list(call.tensors.values()))
    for own, grad in zip(torch.autograd.grad(compiled_value, list(call.tensors.values())), expected, strict=True):
        torch.testing.assert_close(own, grad)


@pytest.mark.parametrize(("normalizer", "backend"), [("softmax", "flash"), ("sigmoid", "reference")])
def test_training_continues_after_inference_mode(normalizer, backend, make_call):
    call = make_call(normalizer, tokens=29, window=6).cast(torch.float32)
    with torch.inference_mode():
        call.run(attention, backend=backend)
    call.run(attention, backend=backend).sum().backward()
    assert call.q.grad is not None


def test_the_package_imports_only_torch():
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['triton', 'lightning', 'torchmetrics', 'sinks']));"
        "import torch, sink_kernels; x = torch.randn(1, 1, 3, 4); sink_kernels.attention(x, x, x)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
