"""The mass each key receives: equal to the reference's column sums, and conserved."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import NORMALIZERS, attention, key_mass, row_blocks

CASES = [{}, {"window": 5}, {"kv_heads": 1, "softcap": 2.0, "scale": 0.5}, {"tokens": 1}]


@pytest.fixture(params=[2**20, 1], ids=["one block", "many blocks"])
def block_size(request, monkeypatch):
    monkeypatch.setattr(row_blocks, "_BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_mass_is_conserved_and_matches_the_first_keys(normalizer, case, dtype, make_call):
    call = make_call(normalizer, dtype=dtype, **{"batch": 2, "tokens": 45, **case})
    _, stats = call.run(attention, stats=("lse", "first_key_mass", "sink_mass"))
    mass = key_mass(call.q, call.k, stats["lse"], **call.options)
    assert mass.shape == call.q.shape[:3]
    assert mass.dtype == torch.float32
    tokens = call.q.shape[2]
    total = (mass + stats["sink_mass"]).sum(-1)
    # torch's half-precision flash kernel approximates exp, so that its lse is off by some 1e-5.
    rtol = 5e-5 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(total, torch.full_like(total, tokens), rtol=rtol, atol=0)
    torch.testing.assert_close(mass[..., 0], stats["first_key_mass"].sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("case", [{}, {"window": 5, "kv_heads": 1}], ids=str)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_equals_the_weights_that_one_hot_values_reveal(normalizer, case, make_call):
    call = make_call(normalizer, tokens=40, head_dim=40, **case)
    weights = attention(call.q, call.k, torch.eye(40).expand(call.k.shape), sink=call.sink, **call.options)
    totals = weights.sum(-1)
    if normalizer in ("sigmoid", "clipped_softmax"):
        weights = weights / totals.unsqueeze(-1)
    _, stats = call.run(attention, stats=("lse",))
    mass = key_mass(call.q, call.k, stats["lse"], **call.options)
    torch.testing.assert_close(mass, weights.sum(2), rtol=1e-5, atol=1e-5)

    numbers = torch.rand(*call.q.shape[:3], 3)
    names = ("key_mass", "own_key_mass", "previous_key_mass", "row_mass")
    _, stats = call.run(attention, stats=names, numbers=numbers)
    assert list(stats) == [*names, "weighted_sum"]
    expected = {
        "key_mass": weights.sum(2),
        "own_key_mass": weights.diagonal(dim1=2, dim2=3),
        "previous_key_mass": torch.nn.functional.pad(weights.diagonal(-1, 2, 3), (1, 0)),
        "row_mass": totals,
        "weighted_sum": weights @ numbers,
    }
    for name, value in expected.items():
        torch.testing.assert_close(stats[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.usefixtures("block_size")
def test_entropy_and_max_logit_do_not_depend_on_the_blocks(make_call):
    call = make_call("learnable_sink", batch=2, heads=4, kv_heads=2, tokens=70, window=21)
    names = ("entropy", "max_logit")
    _, stats = call.run(attention, stats=names, backend="flash")
    _, expected = call.run(attention, stats=names, backend="reference")
    for name in names:
        torch.testing.assert_close(stats[name], expected[name], rtol=1e-5, atol=1e-5)
