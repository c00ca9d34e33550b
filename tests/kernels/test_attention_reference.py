"""The [T, T] reference against an oracle that goes query by query, in float64."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import NORMALIZERS, STATISTICS, attention

CASES = [
    {},
    {"gate": "head"},
    {"gate": "element", "kv_heads": 1},
    {"window": 3, "kv_heads": 1},
    {"window": 1},
    {"softcap": 1.5, "scale": 0.7},
    {"tokens": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_output_gradients_and_statistics_are_the_oracles(normalizer, case, make_call, oracle, out_and_grads):
    call = make_call(normalizer, **{"batch": 2, "tokens": 9, "head_dim": 4, **case}).cast(torch.float64)
    out, grads = out_and_grads(call, attention, backend="reference")
    expected, expected_grads = out_and_grads(call, lambda *_, **__: oracle(call))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-10, atol=1e-12, msg=name)

    _, stats = call.run(attention, backend="reference", stats=STATISTICS)
    for name, value in oracle(call)[1].items():
        assert stats[name].dtype == torch.float32
        assert not stats[name].requires_grad
        torch.testing.assert_close(stats[name].double(), value, rtol=1e-6, atol=2e-6, msg=name)


def test_an_empty_clipped_row_has_no_mass_and_no_entropy():
    q, k, v = (torch.zeros(1, 1, 40, 4) for _ in range(3))
    out, stats = attention(q, k, v, normalizer="clipped_softmax", clip=(-0.5, 1.0), stats=STATISTICS)
    assert out[0, 0, 5:].abs().max() == 0
    for name in ("first_key_mass", "entropy"):
        assert stats[name][0, 0, 5:].abs().max() == 0
    assert all(value.isfinite().all() for value in stats.values())


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_gradcheck(normalizer, make_call):
    call = make_call(normalizer, tokens=5, head_dim=3, kv_heads=1, gate="element", window=4).cast(torch.float64)

    def run(q, k, v, gate, *sink):
        return attention(q, k, v, gate=gate, sink=sink[0] if sink else None, backend="reference", **call.options)

    inputs = [call.q, call.k, call.v, call.gate] + ([] if call.sink is None else [call.sink])
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_half_precision_keeps_its_dtype_and_is_computed_in_single(normalizer, dtype, make_call, relative_error):
    call = make_call(normalizer, dtype=dtype, gate="head")
    out = call.run(attention, backend="reference")
    assert out.dtype == dtype
    expected = call.cast(torch.float64).run(attention, backend="reference")
    assert relative_error(out, expected) < {torch.float32: 1e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}[dtype]
