"""The CPU flash path with its exact sink: against the reference in float64, and against torch's own attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sink_kernels import STATISTICS, attention
from torch.utils._python_dispatch import TorchDispatchMode

SINKS = ["softmax", "off_by_one", "learnable_sink"]
CASES = [
    {},
    {"tokens": 1},
    {"tokens": 100, "kv_heads": 1, "batch": 2},
    {"window": 7, "gate": "head", "kv_heads": 2, "heads": 4},
    {"gate": "element", "scale": 0.3},
    {"window": 1},
    {"window": 1000, "head_dim": 24},
    {"tokens": 230, "window": 40, "gate": "head"},
    {"tokens": 700, "window": 560, "kv_heads": 2, "heads": 4},
    {"softcap": 1.5, "scale": 0.7, "kv_heads": 2, "heads": 4},
    {"tokens": 61, "softcap": 2.0, "window": 9, "gate": "element", "batch": 2},
]
# Relative to float64 on the same rounded inputs: output, gradients, statistics. In half precision torch's kernel
# approximates exp, which the lse shows.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12, 1e-6),
    torch.float32: (2e-6, 5e-6, 2e-6),
    torch.bfloat16: (5e-3, 8e-3, 5e-5),
    torch.float16: (1e-3, 1.5e-3, 5e-5),
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("normalizer", SINKS)
def test_equals_the_reference_in_float64(normalizer, case, dtype, make_call, out_and_grads, relative_error):
    call = make_call(normalizer, dtype=dtype, **case)
    own, exact = call.cast(dtype), call.cast(torch.float64)
    of_out, of_grads, of_stats = TOLERANCES[dtype]

    out, grads = out_and_grads(own, attention, backend="flash")
    expected, expected_grads = out_and_grads(exact, attention, backend="reference")
    assert out.dtype == dtype
    assert relative_error(out, expected) < of_out
    for name, grad in grads.items():
        error = (grad.double() - expected_grads[name]).norm()
        if name == "sink":
            # The sum of terms that cancel: measured against the terms.
            bound = 5e-3 if dtype.itemsize == 2 else of_grads
            assert error < bound * (expected.abs().sum() + 1), name
        else:
            # If a query sees only one key, dq and dk are zero up to rounding.
            assert error < of_grads * expected_grads[name].norm().clamp_min(0.1 * expected_grads["v"].norm()), name

    numbers = torch.rand(*call.q.shape[:3], 3)
    _, stats = own.run(attention, backend="flash", stats=STATISTICS, numbers=numbers)
    _, expected_stats = exact.run(attention, backend="reference", stats=STATISTICS, numbers=numbers)
    assert list(stats) == [*STATISTICS, "weighted_sum"]
    for name, value in stats.items():
        assert value.dtype == torch.float32
        assert value.shape == (numbers.shape if name == "weighted_sum" else call.q.shape[:3])
        assert not value.requires_grad
        scale = expected_stats[name].abs().max().clamp_min(1.0)
        assert (value - expected_stats[name]).abs().max() / scale < 4 * of_stats, name


@pytest.mark.parametrize(
    "case", [{}, {"window": 3}, {"softcap": 1.5, "window": 2}, {"gate": "element", "kv_heads": 1}], ids=str
)
@pytest.mark.parametrize("normalizer", SINKS)
def test_gradcheck(normalizer, case, make_call):
    call = make_call(normalizer, tokens=5, head_dim=4, **case).cast(torch.float64)
    names = list(call.tensors)

    def run(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return attention(given.pop("q"), given.pop("k"), given.pop("v"), **given, backend="flash", **call.options)

    assert torch.autograd.gradcheck(run, list(call.tensors.values()))


@pytest.mark.parametrize("sink", [60.0, -60.0])
def test_extreme_sinks(sink, make_call, out_and_grads, relative_error):
    call = make_call("learnable_sink")
    call.sink.fill_(sink)
    exact = call.cast(torch.float64)
    out, grads = out_and_grads(call.cast(torch.float32), attention, backend="flash")
    expected, expected_grads = out_and_grads(exact, attention, backend="reference")
    assert relative_error(out, expected) < 2e-5
    assert all(relative_error(grads[name], expected_grads[name]) < 2e-5 for name in grads)


@pytest.mark.parametrize("backend", ["flash", "reference"])
def test_a_sink_at_minus_infinity_is_plain_softmax(backend, make_call, out_and_grads):
    call = make_call("learnable_sink", heads=4, kv_heads=2).cast(torch.float32)
    with torch.no_grad():
        call.sink.fill_(float("-inf"))

    def plain(q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) + 0.0 * call.sink.exp().sum()

    out, grads = out_and_grads(call, attention, backend=backend)
    expected, expected_grads = out_and_grads(call, plain)
    torch.testing.assert_close(out, expected)
    assert grads.pop("sink").abs().max() == 0
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], msg=name)
    _, stats = call.run(attention, backend=backend, stats=STATISTICS)
    assert all(value.isfinite().all() for value in stats.values())
    assert stats["sink_mass"].max() == 0


def test_key_blocks_outside_the_window_have_no_effect(make_call, out_and_grads, relative_error):
    call = make_call("learnable_sink", heads=1, tokens=1100, head_dim=8, window=20)
    out, grads = out_and_grads(call.cast(torch.float32), attention, backend="flash")
    expected, expected_grads = out_and_grads(call.cast(torch.float64), attention, backend="reference")
    assert relative_error(out, expected) < 2e-6
    assert all(relative_error(grads[name], expected_grads[name]) < 2e-5 for name in grads)


@pytest.mark.parametrize("normalizer", SINKS)
def test_strides_do_not_matter(normalizer, make_call, out_and_grads):
    call = make_call(normalizer, batch=2, heads=3, gate="element").cast(torch.float32)
    expected, expected_grads = out_and_grads(call, attention, backend="flash")

    def elsewhere(q, k, v, **options):
        q, k, v = q.mT.contiguous().mT, k.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([v, v], -1)[..., :16]
        return attention(q, k, v, **options)

    out, grads = out_and_grads(call, elsewhere, backend="flash")
    torch.testing.assert_close(out, expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], msg=name)


@pytest.mark.parametrize("normalizer", SINKS)
def test_an_expanded_gradient_is_read_correctly(normalizer, make_call):
    call = make_call(normalizer).cast(torch.float64)
    grads = [
        torch.autograd.grad(call.run(attention, backend=backend).sum(), list(call.tensors.values()))
        for backend in ("flash", "reference")
    ]
    for own, expected in zip(*grads, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("normalizer", SINKS)
def test_statistics_change_neither_the_output_nor_what_is_saved(normalizer, window, make_call):
    call = make_call(normalizer, window=window, gate="head").cast(torch.float32)

    def saved(**more):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (shapes.append(tuple(x.shape)), x)[1], lambda x: x):
            out = call.run(attention, backend="flash", **more)
        return (out[0] if more else out), shapes

    plain, plain_shapes = saved()
    out, shapes = saved(stats=STATISTICS)
    assert torch.equal(out, plain)
    assert shapes == plain_shapes


@pytest.mark.parametrize("case", [{}, {"window": 100}, {"softcap": 2.0}, {"window": 100, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("normalizer", SINKS)
def test_no_tensor_has_two_dimensions_of_the_length(normalizer, case, make_call):
    class Shapes(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made = result if isinstance(result, (tuple, list)) else [result]
            self.seen |= {tuple(x.shape) for x in made if isinstance(x, torch.Tensor)}
            return result

    call = make_call(normalizer, tokens=1024, heads=4, kv_heads=2, **case).cast(torch.float32)
    with Shapes() as shapes:
        out, _ = call.run(attention, stats=STATISTICS, numbers=torch.ones(*call.q.shape[:3], 3))
        out.sum().backward()
    assert tuple(call.q.shape) in shapes.seen
    assert [shape for shape in shapes.seen if sum(size >= 1024 for size in shape) > 1] == []
