"""The mixture of experts of Qwen3-Next: fine-grained SwiGLU experts, and one that every token has."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.errors import UserError, require
from sinks.models.feed_forward import FeedForwardConfig, SwiGLU
from sinks.models.grouped import grouped_product
from sinks.models.routed_experts import RoutedExperts, Router, Rows
from sinks.models.splits import Split


class MixtureOfExperts(RoutedExperts):
    """Chosen experts by the softmax over all, renormalized, plus sigmoid(w . x) times a shared expert.

    An expert is W_down (silu(W_gate x) * W_up x), without biases. As Qwen3-Next, whose layout of arXiv:2601.22966
    (Table 5) follows; that the shared expert is gated there is not stated. With `chosen` + 1 = `granularity` a token
    costs what one dense SwiGLU of `hidden` costs. Train with `LoadBalance`, or experts may starve.

    Args:
        config: widths, names and initialization.
        experts: number of experts, the shared one apart.
        chosen: experts of each token.
        granularity: width of the dense hidden layer over that of an expert (arXiv:2401.06066); at 1, `hidden` is the
            width of an expert.

    Raises:
        UserError: if the granularity does not divide the hidden width.
    """

    def __init__(self, config: FeedForwardConfig, experts: int = 8, chosen: int = 3, granularity: int = 4) -> None:
        require("experts' granularity", granularity, at_least=1, remedy="give e.g. 4")
        if config.hidden % granularity:
            raise UserError(
                f"experts' granularity is {granularity}, but must divide ffn_hidden = {config.hidden}: give a divisor"
            )
        width = config.hidden // granularity
        super().__init__(config, experts, chosen, width, router_bias=False)
        shared = dataclasses.replace(config, site=f"{config.site}.shared", hidden=width, bias=False)
        self.shared = SwiGLU(shared)
        self.shared_gate = Router(config.d_model, 1, config.init_std)

    def hidden(self, tokens: Tensor, rows: Rows) -> Tensor:
        gate, up = grouped_product(tokens, self.gate_up, rows.counts).unflatten(-1, (-1, 2)).unbind(-1)
        return F.silu(gate) * up

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.sigmoid(self.shared_gate(x)) * self.shared(x)

    def shard_plan(self) -> dict[str, Split]:
        shared = {f"shared.{name}": split for name, split in self.shared.shard_plan().items() if "bias" not in name}
        return super().shard_plan() | shared | {"shared_gate.weight": Split("shared")}
