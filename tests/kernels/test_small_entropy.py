"""The entropy of rows with nearly all of their mass on one key, where logits are far larger than it."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import attention

LARGE = 1024.0  # logit of key 0
TOKENS = 8
UNIT = 2.0**-24  # largest relative error of one float32 operation
OPERATIONS = TOKENS + 4  # that a row's total takes: a sum over keys and sink, an exp of two units, a log


def small_entropies() -> tuple[torch.Tensor, torch.Tensor]:
    """q and k [1, 1, T, 16] whose logits are exact in float32: LARGE for key 0, 7 to 9 less for the others."""
    q, k = torch.zeros(1, 1, TOKENS, 16), torch.zeros(1, 1, TOKENS, 16)
    q[..., 0], q[..., 1] = LARGE, 1.0
    k[..., 0], k[..., 1:, 1] = 1.0, -(7.0 + torch.arange(TOKENS - 1) % 3)
    return q, k


def exact_entropy(q: torch.Tensor, k: torch.Tensor, sink: float | None) -> torch.Tensor:
    """In float64, from the definition."""
    logits = (q.double() @ k.double().mT).masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
    if sink is not None:
        logits = torch.cat([logits, torch.full((1, 1, TOKENS, 1), sink, dtype=torch.float64)], dim=-1)
    weights = logits.softmax(-1)
    return -torch.special.xlogy(weights, weights).sum(-1)


# What a logit of LARGE loses: nothing where the largest, which is near, is subtracted; on Triton, which multiplies both
# by log2(e) first, two roundings of the products, each a relative error of every small weight.
RELATIVE = {"flash": 0.0, "triton": 2 * UNIT * LARGE * 1.5, "reference": 0.0}


@pytest.mark.parametrize("sink", [None, LARGE - 8.0, -torch.inf])
@pytest.mark.parametrize("backend", RELATIVE)
def test_it_is_exact_to_a_few_roundings_of_one(backend: str, sink: float | None, triton_device: str) -> None:
    q, k = small_entropies()
    device = triton_device if backend == "triton" else "cpu"
    options = {} if sink is None else {"normalizer": "learnable_sink", "sink": torch.tensor([sink], device=device)}
    tensors = (x.to(device) for x in (q, k, k))
    _, found = attention(*tensors, **options, scale=1.0, stats=("entropy",), backend=backend)  # type: ignore[call-overload]
    expected = exact_entropy(q, k, sink)
    assert expected[..., 1:].min() > 1e-3
    assert expected[..., 1:].max() < 0.05
    # Of p and of p log p: an exp, a product, a sum, and what a logit below 16 loses.
    relative = RELATIVE[backend] + 32 * UNIT
    torch.testing.assert_close(found["entropy"].cpu().double(), expected, rtol=relative, atol=OPERATIONS * UNIT)
