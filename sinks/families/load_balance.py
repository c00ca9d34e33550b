"""The load-balance loss of experts, over the global batch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from sinks.errors import UserError, require
from sinks.families.objectives import NextToken, Objective, WithAuxiliary, added
from sinks.models.routed_experts import RoutedExperts, collecting

if TYPE_CHECKING:
    from sinks.families.causal_lm import CausalLM


class LoadBalance(WithAuxiliary):
    """Another objective plus weight * sum over layers of E * sum_e f_e p_e (Fedus et al. 2021, arXiv:2101.03961).

    f_e is the fraction of all rows that expert e gets, p_e the mean of its router probability; a layer in balance has
    1. The fractions are those of a micro-batch of all ranks together (Qiu et al. 2025, arXiv:2501.11873), so that the
    gradient is that of one process with the whole of it; accumulated micro-batches count apart.

    Args:
        weight: of the loss of a layer.
        objective: to which it is added.
    """

    def __init__(self, weight: float = 1e-3, objective: Callable[[], Objective] = NextToken) -> None:
        super().__init__(objective)
        self.weight = require("load balance weight", weight, above=0, remedy="leave the loss out for none")

    def check(self, model: "CausalLM") -> None:
        if not any(isinstance(module, RoutedExperts) for module in model.meta_decoder().modules()):
            raise UserError(
                "LoadBalance needs experts, but no layer has any: give e.g. feed_forward MixtureOfExperts, in a file "
                "after those with another feed_forward"
            )
        super().check(model)

    def terms(self, model: "CausalLM", rows: Tensor) -> tuple[Tensor, Tensor | None]:
        with collecting(model) as balances:
            task, auxiliary = self.objective.terms(model, rows)
            found = [balance.found for balance in balances if balance.found is not None]
        probabilities, counts = (torch.stack(layers) for layers in zip(*found, strict=True))  # [layers, E]
        imbalance = probabilities.shape[1] * (_fractions(counts) * probabilities).sum()
        return task, added(auxiliary, self.weight * _shared_gradient(imbalance, model))


def _fractions(counts: Tensor) -> Tensor:
    """Of the rows of all ranks [layers, E]; tensor-parallel ones have the same rows, which does not change it."""
    counts = counts.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts / counts.sum(1, keepdim=True)


def _shared_gradient(loss: Tensor, model: "CausalLM") -> Tensor:
    """A loss that every tensor-parallel process computes whole, while gradients are summed over these processes."""
    size = 1 if model.device_mesh is None else model.device_mesh["tensor_parallel"].size()
    part = loss / size
    return part + (loss - part).detach()
