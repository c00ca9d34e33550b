"""The Triton attention, under the interpreter without a GPU, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sink_kernels import STATISTICS, attention, attention_op
from sink_kernels.tiles import Tile

from benchmarks.kernels.checks import attention_checks

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # The interpreter computes on the infinities that masks then remove; Triton 3.6 uses a NumPy cast that will go.
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning"),
]

SQUARE, WIDE, TALL, LARGE = Tile(32, 32, 4, 2), Tile(16, 32, 4, 2), Tile(32, 16, 4, 2), Tile(64, 64, 4, 2)
EVERY_DTYPE = [
    ("softmax", SQUARE, {"tokens": 70, "gate": "element"}),
    ("learnable_sink", WIDE, {"tokens": 65, "kv_heads": 1, "gate": "head", "window": 21}),
    ("sigmoid", TALL, {"tokens": 70, "kv_heads": 1, "gate": "element"}),
]
SINGLE = [
    ("softmax", SQUARE, {"tokens": 64, "batch": 2, "scale": 0.4}),
    ("softmax", LARGE, {"tokens": 1, "gate": "head"}),
    ("softmax", LARGE, {"tokens": 17, "head_dim": 96}),
    ("softmax", TALL, {"tokens": 97, "softcap": 1.5, "kv_heads": 1}),
    ("off_by_one", WIDE, {"tokens": 63, "heads": 4, "kv_heads": 2, "gate": "element"}),
    ("off_by_one", TALL, {"tokens": 67, "window": 1}),
    ("learnable_sink", LARGE, {"tokens": 130}),
    ("learnable_sink", TALL, {"tokens": 100, "window": 40, "gate": "head"}),
    ("learnable_sink", WIDE, {"tokens": 66, "head_dim": 24, "softcap": 2.0, "gate": "element"}),
    ("learnable_sink", SQUARE, {"tokens": 200, "window": 64, "heads": 1}),
    ("sigmoid", WIDE, {"tokens": 80, "window": 37}),
    ("sigmoid", SQUARE, {"tokens": 61, "softcap": 1.0, "gate": "head"}),
]
CASES = [(torch.float32, *case) for case in SINGLE + EVERY_DTYPE]
CASES += [(dtype, *case) for dtype in (torch.bfloat16, torch.float16) for case in EVERY_DTYPE]


@pytest.fixture
def use_tile(monkeypatch, triton_device):
    """Small tiles, so that short sequences have several blocks."""
    from sink_kernels import triton_attention

    def use(tile):
        monkeypatch.setattr(triton_attention, "tile_for", lambda *_: tile)

    return use


@pytest.mark.parametrize(("dtype", "normalizer", "tile", "case"), CASES, ids=str)
def test_equals_the_reference_in_float64(dtype, normalizer, tile, case, make_call, use_tile, triton_device, close):
    use_tile(tile)
    call = make_call(normalizer, dtype=dtype, **case).to(triton_device)
    for name, check in attention_checks(call, dtype).items():
        assert check.passed, f"{name}: {check.error:.1e}, the limit is {check.limit:.1e}"

    own = call.cast(dtype)
    out = own.run(attention, backend="triton")
    assert out.dtype == dtype
    with_stats, stats = own.run(attention, backend="triton", stats=STATISTICS)
    torch.testing.assert_close(out, with_stats, **({} if dtype.itemsize == 2 else close))
    for value in stats.values():
        assert value.dtype == torch.float32
        assert not value.requires_grad
    mass = attention_op.key_mass(own.q.detach(), own.k.detach(), stats["lse"], *attention_op.flat(own.resolved()))
    torch.testing.assert_close((mass + stats["sink_mass"]).sum(-1), torch.full_like(mass[..., 0], case["tokens"]))


@pytest.mark.parametrize("tile", [SQUARE, WIDE, TALL], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        {"normalizer": "softmax", "tokens": 70},
        {"normalizer": "softmax", "tokens": 1},
        {"normalizer": "learnable_sink", "tokens": 97, "window": 40, "gate": "element", "kv_heads": 1},
        {"normalizer": "sigmoid", "tokens": 65, "softcap": 2.0, "head_dim": 24},
    ],
    ids=str,
)
def test_scores_computed_ahead_are_the_same_bit_for_bit(tile, case, make_call, use_tile, triton_device):
    call = make_call(**case).to(triton_device)
    results = []
    for each in (tile, tile._replace(schedule="ahead")):
        use_tile(each)
        results.append(call.run(attention, backend="triton", stats=STATISTICS, numbers=call.q[..., :1].abs()))
    (out, stats), (ahead, stats_ahead) = results
    assert torch.equal(ahead, out)
    for name, value in stats.items():
        assert torch.equal(stats_ahead[name], value), name


@pytest.mark.parametrize("sink", [60.0, -60.0])
def test_extreme_sinks(sink, make_call, out_and_grads, relative_error, use_tile, triton_device):
    use_tile(SQUARE)
    call = make_call("learnable_sink", tokens=50).to(triton_device)
    call.sink.fill_(sink)
    out, grads = out_and_grads(call.cast(torch.float32), attention, backend="triton")
    expected, expected_grads = out_and_grads(call.cast(torch.float64), attention, backend="reference")
    assert relative_error(out, expected) < 2e-5
    assert all(relative_error(grads[name], expected_grads[name]) < 2e-5 for name in grads)


def test_a_sink_at_minus_infinity_is_plain_softmax(make_call, out_and_grads, use_tile, triton_device, close):
    use_tile(SQUARE)
    call = make_call("learnable_sink", tokens=50).to(triton_device).cast(torch.float32)
    with torch.no_grad():
        call.sink.fill_(float("-inf"))

    def plain(q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True) + 0.0 * call.sink.exp().sum()

    out, grads = out_and_grads(call, attention, backend="triton")
    expected, expected_grads = out_and_grads(call, plain)
    torch.testing.assert_close(out, expected, **close)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], **close, msg=name)
    _, stats = call.run(attention, backend="triton", stats=STATISTICS)
    assert all(value.isfinite().all() for value in stats.values())
    assert stats["sink_mass"].max() == 0


def test_zero_gate_halves_the_output(make_call, use_tile, triton_device):
    use_tile(SQUARE)
    call = make_call("learnable_sink", gate="head").to(triton_device)
    call.gate.zero_()
    half = call.run(attention, backend="triton")
    torch.testing.assert_close(2 * half, call._replace(gate=None).run(attention, backend="triton"))


def test_a_later_token_changes_nothing_before_it(make_call, use_tile, triton_device):
    use_tile(SQUARE)
    for normalizer in ("learnable_sink", "sigmoid"):
        call = make_call(normalizer, tokens=50, gate="element").to(triton_device)
        out, stats = call.run(attention, backend="triton", stats=STATISTICS)
        for tensor in (call.q, call.k, call.v, call.gate):
            tensor[:, :, 20:] += 3.0
        changed, changed_stats = call.run(attention, backend="triton", stats=STATISTICS)
        assert torch.equal(out[:, :, :20], changed[:, :, :20])
        assert not torch.equal(out, changed)
        for name in set(STATISTICS) - {"key_mass"}:
            torch.testing.assert_close(stats[name][..., :20], changed_stats[name][..., :20])


def test_strides_and_expanded_gradients(make_call, use_tile, triton_device, close):
    use_tile(SQUARE)
    call = make_call("learnable_sink", batch=2, heads=3, kv_heads=1, gate="element").to(triton_device)
    call = call.cast(torch.float32)

    def grads(q, k, v, gate, backend):
        out = attention(q, k, v, gate=gate, sink=call.sink, backend=backend, **call.options)
        return out, torch.autograd.grad(out.sum(), list(call.tensors.values()))

    expected, expected_grads = grads(call.q, call.k, call.v, call.gate, "reference")
    q, gate = call.q.mT.contiguous().mT, call.gate.transpose(1, 2).contiguous().transpose(1, 2)
    k, v = call.k.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([call.v, call.v], -1)[..., :16]
    out, own_grads = grads(q, k, v, gate, "triton")
    torch.testing.assert_close(out, expected, **close)
    # Joining the heads costs no copy.
    assert out.transpose(1, 2).is_contiguous()
    for own, grad in zip(own_grads, expected_grads, strict=True):
        torch.testing.assert_close(own, grad, **close)


def test_the_gate_may_have_another_dtype(make_call, out_and_grads, relative_error, use_tile, triton_device):
    use_tile(SQUARE)
    call = make_call("softmax", tokens=40, gate="element", dtype=torch.bfloat16).to(triton_device)
    own = call.cast(torch.bfloat16)._replace(gate=call.gate.float().requires_grad_())
    out, grads = out_and_grads(own, attention, backend="triton")
    expected, expected_grads = out_and_grads(call.cast(torch.float64), attention, backend="reference")
    assert out.dtype == torch.bfloat16
    assert grads["gate"].dtype == torch.float32
    assert relative_error(out, expected) < 4e-3
    assert relative_error(grads["gate"], expected_grads["gate"]) < 6e-3


def test_the_tile_table_itself(make_call, out_and_grads, relative_error, triton_device):
    call = make_call("learnable_sink", tokens=300, heads=1, head_dim=64, dtype=torch.bfloat16).to(triton_device)
    out, grads = out_and_grads(call.cast(torch.bfloat16), attention, backend="triton")
    expected, expected_grads = out_and_grads(call.cast(torch.float64), attention, backend="reference")
    assert relative_error(out, expected) < 5e-3
    assert all(relative_error(grads[name], expected_grads[name]) < 7e-3 for name in "qkv")


@pytest.mark.parametrize("case", [("learnable_sink", "element"), ("sigmoid", None)], ids=str)
def test_opcheck(case, make_call, use_tile, triton_device):
    use_tile(SQUARE)
    call = make_call(case[0], tokens=20, gate=case[1], kv_heads=1).to(triton_device).cast(torch.float32)
    flat = attention_op.flat(call.resolved())
    torch.library.opcheck(attention_op.attention_forward, (*call[:5], *flat, True, True))
    lse = torch.zeros(call.q.shape[:3], device=triton_device)
    torch.library.opcheck(attention_op.key_mass, (call.q.detach(), call.k.detach(), lse, *flat))


def test_compiles_into_one_graph(make_call, use_tile, triton_device):
    use_tile(SQUARE)
    call = make_call("learnable_sink", tokens=40, gate="head").to(triton_device).cast(torch.float32)

    def loss(q, k, v, sink, gate):
        out, stats = attention(
            q.cos(), k, v, sink=sink, gate=gate, backend="triton", stats=("lse", "first_key_mass"), **call.options
        )
        return out.square().sum(), stats["first_key_mass"]

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, mass = loss(*call[:5])
    compiled_value, compiled_mass = compiled(*call[:5])
    torch.testing.assert_close(compiled_value, value)
    torch.testing.assert_close(compiled_mass, mass)
    expected = torch.autograd.grad(value, call[:5])
    for own, grad in zip(torch.autograd.grad(compiled_value, call[:5]), expected, strict=True):
        torch.testing.assert_close(own, grad)


def test_unsupported_calls_are_rejected_with_an_alternative(make_call, triton_device, monkeypatch):
    with pytest.raises(ValueError, match=r"clipped_softmax.*reference"):
        make_call("clipped_softmax").to(triton_device).run(attention, backend="triton")
    with pytest.raises(ValueError, match=r"float32, bfloat16, float16, q is torch.float64.*reference"):
        make_call(dtype=torch.float64).to(triton_device).run(attention, backend="triton")
    with pytest.raises(ValueError, match=r"up to 256.*has 300.*reference"):
        make_call(head_dim=300).to(triton_device).run(attention, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"runs on a GPU, q is on cpu.*auto"):
        make_call().run(attention, backend="triton")


def test_every_head_dimension_dtype_and_gpu_has_a_tile():
    from sink_kernels.tiles import KERNELS, tile_for

    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for head_dim in (16, 32, 64, 128, 256):
                for kernel in KERNELS:
                    tile = tile_for(kernel, head_dim, dtype, capability)
                    assert min(tile[:2]) >= 16
                    assert kernel == "forward" or tile.schedule == "plain"
