"""Exclusive self-attention against its formula, and where it stands: after the weighted sum, before the gate."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sinks.models.attention import Attention
from sinks.models.attention_gates import AttentionGate, ElementwiseGate, HeadwiseGate, IdentityHeadwiseGate, NoGate
from sinks.models.exclusion import ExclusiveSelfAttention, LearnedExclusion
from sinks.models.normalizers import Softmax
from tests.families.variants import SMALL

CONFIG = SMALL.attention_config("attention", 12)


def dense(layer: Attention, x: Tensor, strength: Tensor) -> Tensor:
    """The layer as it is written, head by head and query by query."""
    q, k, v = layer.project(x)
    gate = layer.gate(x)
    heads = []
    for head in range(4):
        keys, values = k[:, head // 2], v[:, head // 2]
        scores = q[:, head] @ keys.mT / CONFIG.head_dim**0.5
        scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), -torch.inf)
        y = scores.softmax(-1) @ values
        z = y - strength[head] * (y * values).sum(-1, keepdim=True) / values.square().sum(-1, keepdim=True) * values
        if gate is not None:
            opened = layer.gate.limit * torch.sigmoid(gate[:, head])
            z = z * (opened if gate.dim() == 4 else opened[..., None])
        heads.append(z)
    return torch.cat(heads, dim=-1) @ layer.out.weight.T


@pytest.mark.parametrize("gate", [NoGate, HeadwiseGate, ElementwiseGate, IdentityHeadwiseGate])
@pytest.mark.parametrize("strength", [None, 0.7])
def test_outputs_and_gradients_are_those_of_the_formula(
    strength: float | None, gate: Callable[..., AttentionGate]
) -> None:
    learned = partial(LearnedExclusion, initial=strength or 0.0)
    torch.manual_seed(0)
    layer = Attention(CONFIG, Softmax, gate, ExclusiveSelfAttention if strength is None else learned).double()
    if isinstance(layer.exclusion, LearnedExclusion):
        with torch.no_grad():
            layer.exclusion.strength.add_(torch.arange(4))
    x = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 12, 16, dtype=torch.float64)
    strengths = torch.ones(4) if strength is None else layer.exclusion.strength
    found, expected = layer(x), dense(layer, x, strengths)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((out * direction).sum(), inputs) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_an_own_value_of_zero_takes_nothing_out() -> None:
    out, v = torch.randn(1, 2, 3, 4, requires_grad=True), torch.zeros(1, 1, 3, 4, requires_grad=True)
    left = ExclusiveSelfAttention(CONFIG)(out, v)
    assert torch.equal(left, out)
    left.sum().backward()
    assert v.grad is not None
    assert not v.grad.any()


def test_bfloat16_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    out, v = torch.randn(1, 2, 64, 64).bfloat16(), torch.randn(1, 2, 64, 64).bfloat16()
    exact = ExclusiveSelfAttention(CONFIG)(out.double(), v.double())
    assert torch.equal(ExclusiveSelfAttention(CONFIG)(out, v), exact.float().bfloat16())
