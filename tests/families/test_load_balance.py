"""The load-balance loss: its definition and gradients, what it needs, and how blocks are run under it."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.families.load_balance import LoadBalance
from sinks.models.execution import Execution
from sinks.models.experts import Experts
from sinks.models.mixture_of_experts import MixtureOfExperts
from sinks.models.routed_experts import Balance, RoutedExperts
from tests.families.variants import SMALL, build

EXPERTS, CHOSEN, WEIGHT = 5, 2, 0.3


def model(**options: Any) -> CausalLM:
    torch.manual_seed(0)
    experts = partial(MixtureOfExperts, experts=EXPERTS, chosen=CHOSEN)
    options = {"feed_forward": experts, "objective": partial(LoadBalance, weight=WEIGHT)} | options
    return build("baseline", **options)


def rows() -> Tensor:
    return torch.randint(0, 11, (3, 13), generator=torch.Generator().manual_seed(1))


def gradients(made: CausalLM, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(made.parameters())))


@pytest.mark.parametrize("experts", [MixtureOfExperts, Experts])
def test_loss_and_gradients_are_those_of_the_definition(experts: Any) -> None:
    made = model(feed_forward=partial(experts, experts=EXPERTS, chosen=CHOSEN)).double()
    logits: list[Tensor] = []
    for layer in (module for module in made.modules() if isinstance(module, RoutedExperts)):
        layer.router.register_forward_hook(lambda module, inputs, output: logits.append(output))
    expected = made.loss(rows())
    for layer in logits:
        chosen = torch.zeros_like(layer).scatter(1, layer.topk(CHOSEN).indices, 1.0)
        expected = expected + WEIGHT * EXPERTS * (chosen.mean(0) / CHOSEN * layer.softmax(-1).mean(0)).sum()
    found = made.objective.loss(made, rows())
    torch.testing.assert_close(found, expected)
    for own, other in zip(gradients(made, found), gradients(made, expected), strict=True):
        torch.testing.assert_close(own, other)


def test_a_checkpointed_block_gives_the_same_gradients() -> None:
    plain, checkpointed = model(), model(execution=Execution(activation_checkpointing=True))
    found = [gradients(made, made.objective.loss(made, rows())) for made in (plain, checkpointed)]
    assert all(torch.equal(own, other) for own, other in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_block_gives_the_same_gradients(checkpointing: bool) -> None:
    torch._dynamo.reset()
    plain, compiled = model(), model(execution=Execution(compile=True, activation_checkpointing=checkpointing))
    for _ in range(2):  # the second time nothing is compiled
        found = [gradients(made, made.objective.loss(made, rows())) for made in (plain, compiled)]
        for own, other in zip(*found, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_it_keeps_nothing_when_no_loss_is_computed() -> None:
    made = model()
    balances = [module for module in made.modules() if isinstance(module, Balance)]
    made.objective.loss(made, rows()).backward()
    made.loss(rows())
    assert [balance.found for balance in balances] == [None, None]


def test_tensor_parallel_processes_share_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes it whole, and gradients are summed over them: the value stays, the gradient is a part."""

    class Mesh:
        def __getitem__(self, name: str) -> "Mesh":
            return self

        def size(self) -> int:
            return 4

    made = model().double()
    whole, loss = made.objective.loss(made, rows()), made.loss(rows())
    expected = gradients(made, whole - loss)
    monkeypatch.setattr(CausalLM, "device_mesh", Mesh())
    part = made.objective.loss(made, rows())
    torch.testing.assert_close(part, whole)
    for own, other in zip(gradients(made, part - made.loss(rows())), expected, strict=True):
        torch.testing.assert_close(4 * own, other, rtol=1e-6, atol=1e-12)


def test_what_it_needs_is_rejected_at_construction() -> None:
    with pytest.raises(UserError, match="LoadBalance needs experts, but no layer has any: give"):
        CausalLM(11, 12, architecture=SMALL, objective=LoadBalance)
    with pytest.raises(UserError, match="load balance weight is 0"):
        LoadBalance(0)
