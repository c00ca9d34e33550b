"""Output gates and gates of keys against their formulas: float64, outputs and all gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.errors import UserError
from sinks.models.attention import Attention
from sinks.models.attention_gates import (
    ActivatedGate,
    AmplifyingElementwiseGate,
    AmplifyingHeadwiseGate,
    AttentionGate,
    ElementwiseGate,
    HeadwiseGate,
    IdentityElementwiseGate,
    IdentityHeadwiseGate,
    NoGate,
    TensorwiseGate,
)
from sinks.models.key_gates import GatedKeys
from sinks.models.normalizers import Sigmoid, Softmax
from tests.families.variants import SMALL

CONFIG = SMALL.attention_config("attention", 12)
BATCH, TOKENS, HEADS, WIDTH = 2, 12, 4, 6


def sigmoid(a: Tensor) -> Tensor:
    return 1 / (1 + (-a).exp())


GATES: dict[str, tuple[Callable[..., AttentionGate], Callable[[Tensor], Tensor]]] = {
    "tensorwise": (TensorwiseGate, sigmoid),
    "tensorwise, open": (partial(TensorwiseGate, initial_gate=0.8), lambda a: sigmoid(a + math.log(4))),
    "headwise": (HeadwiseGate, sigmoid),
    "headwise, truncated": (partial(HeadwiseGate, dimensions=3), sigmoid),
    "elementwise, truncated": (partial(ElementwiseGate, dimensions=1), sigmoid),
    "headwise, from one": (AmplifyingHeadwiseGate, lambda a: 2 * sigmoid(a)),
    "elementwise, from one, truncated": (partial(AmplifyingElementwiseGate, dimensions=5), lambda a: 2 * sigmoid(a)),
    "tanh": (partial(ActivatedGate, activation="tanh"), lambda a: (a.exp() - (-a).exp()) / (a.exp() + (-a).exp())),
    "silu, headwise": (partial(ActivatedGate, activation="silu", gate=HeadwiseGate), lambda a: a * sigmoid(a)),
    "identity, tensorwise": (partial(ActivatedGate, activation="identity", gate=TensorwiseGate), lambda a: a),
}


def dense(layer: Attention, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The layer with its gate as it is written."""
    q, k, v = layer.project(x)
    scores = q @ k.repeat_interleave(2, 1).mT / WIDTH**0.5
    weights = scores.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    out = weights @ v.repeat_interleave(2, 1)
    (weight,) = layer.gate.parameters()
    values = activation(x[..., : weight.shape[1]] @ weight.T).unflatten(-1, (-1, len(weight) // HEADS or 1))
    gated = values.transpose(1, 2) * out  # [B, heads or 1, T, width or 1]
    return gated.transpose(1, 2).flatten(2) @ layer.out.weight.T


@pytest.mark.parametrize("name", GATES)
def test_outputs_and_gradients_are_those_of_the_formula(name: str) -> None:
    make, activation = GATES[name]
    torch.manual_seed(0)
    layer = Attention(CONFIG, Softmax, make).double()
    x = torch.randn(BATCH, TOKENS, 16, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    found, expected = layer(x), dense(layer, x, activation)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *layer.parameters()]
    gradients = [torch.autograd.grad((out * direction).sum(), inputs) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", GATES)
@torch.no_grad()
def test_activations_are_the_inverse_of_values(name: str) -> None:
    gate = GATES[name][0](CONFIG).double()
    activations = gate(torch.randn(BATCH, TOKENS, 16, dtype=torch.float64))
    assert activations is not None
    torch.testing.assert_close(gate.activations(gate.values(activations)), activations, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_truncated_gate_does_not_see_the_other_dimensions() -> None:
    gate = HeadwiseGate(CONFIG, dimensions=3)
    x = torch.randn(1, TOKENS, 16)
    changed = torch.cat([x[..., :3], torch.randn(1, TOKENS, 13)], dim=-1)
    assert torch.equal(gate(x), gate(changed))
    changed[..., 2] += 1
    assert not torch.equal(gate(x), gate(changed))


@pytest.mark.parametrize(
    ("plain", "identity"),
    [(AmplifyingHeadwiseGate, IdentityHeadwiseGate), (AmplifyingElementwiseGate, IdentityElementwiseGate)],
)
def test_a_gate_from_one_starts_there_at_the_steepest_slope(plain: Any, identity: Any) -> None:
    assert plain(CONFIG).projection.weight.std() > 0.5 * CONFIG.init_std
    assert not identity(CONFIG).projection.weight.any()
    activations = torch.zeros(1, requires_grad=True)
    value = plain(CONFIG).values(activations)
    assert value == 1
    value.backward()
    assert activations.grad == 0.5


@pytest.mark.parametrize("normalizer", [Softmax, Sigmoid])
def test_gated_keys_are_those_of_the_formula(normalizer: Any) -> None:
    torch.manual_seed(0)
    gated = Attention(CONFIG, normalizer, NoGate, key_gate=GatedKeys).double()
    plain = Attention(CONFIG, normalizer, NoGate).double()
    x = torch.randn(BATCH, TOKENS, 16, dtype=torch.float64, requires_grad=True)
    plain.load_state_dict({n: p for n, p in gated.state_dict().items() if "key_gate" not in n})
    assert torch.equal(gated(x), plain(x))
    weight = gated.key_gate.projection.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.normal_()
    direction = torch.randn_like(x)
    q, k, v = gated.project(x)
    expected_k = F.linear(x, gated.key.weight) * 2 * sigmoid(x @ weight.T)  # type: ignore[operator]
    expected_k = gated.rotary(expected_k.view(BATCH, TOKENS, 2, WIDTH).transpose(1, 2))
    torch.testing.assert_close(k, expected_k, rtol=1e-12, atol=1e-12)
    expected = plain.normalizer.attend(q, expected_k, v, None)[0].transpose(1, 2).flatten(2) @ gated.out.weight.T
    found = gated(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *gated.parameters()]
    gradients = [torch.autograd.grad((out * direction).sum(), inputs) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dimensions", [0, 17])
def test_dimensions_that_are_not_there_are_rejected(dimensions: int) -> None:
    with pytest.raises(UserError, match=f"dimensions is {dimensions}, but must be at least 1 and at most"):
        HeadwiseGate(CONFIG, dimensions=dimensions)


def test_a_factor_that_an_activation_would_drop_is_rejected() -> None:
    with pytest.raises(UserError, match="ActivatedGate has AmplifyingHeadwiseGate, whose factor 2 is of its sigmoid"):
        ActivatedGate(CONFIG, "tanh", AmplifyingHeadwiseGate)
    with pytest.raises(UserError, match=r"ActivatedGate has a gate whose initial_gate is 0.9, of its sigmoid"):
        ActivatedGate(CONFIG, "tanh", partial(HeadwiseGate, initial_gate=0.9))
