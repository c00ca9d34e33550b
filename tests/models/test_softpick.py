"""Softpick against its formula, where that can be computed as it is written, and where it cannot."""

import pytest
import torch
from torch import Tensor

from sinks.models.normalizers import softpick


def causal(scores: Tensor) -> Tensor:
    length = scores.shape[-1]
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)


def as_written(scores: Tensor) -> Tensor:
    terms = scores.exp() - 1
    total = terms.abs().masked_fill(scores == -torch.inf, 0.0).sum(-1, keepdim=True)
    return terms.relu() / (total + 1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_weights_and_gradients_are_those_of_the_formula(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (size * torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    direction = torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64)
    found, expected = (function(causal(scores)) for function in (softpick, as_written))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    gradients = [torch.autograd.grad((weights * direction).sum(), scores)[0] for weights in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9 / size)
    assert (found.sum(-1) <= 1 + 1e-12).all()


def test_a_row_without_a_positive_score_is_empty() -> None:
    weights = softpick(causal(-torch.rand(1, 1, 5, 5)))
    assert not weights.any()
    assert not softpick(torch.zeros(1, 1, 3, 3)).any()


def test_scores_that_float32_cannot_raise_to_a_power_are_finite() -> None:
    scores = torch.tensor([[[[200.0, -torch.inf], [1000.0, 999.0]]]], requires_grad=True)
    weights = softpick(scores)
    weights[..., 0].sum().backward()
    assert weights[0, 0, 0, 0] == 1
    torch.testing.assert_close(weights[0, 0, 1].detach(), torch.tensor([0.7310586, 0.2689414]))
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
