"""The experts of gpt-oss."""

import torch
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.feed_forward import FeedForwardConfig
from sinks.models.grouped import grouped_product
from sinks.models.routed_experts import RoutedExperts, Rows
from sinks.models.splits import Split


class Experts(RoutedExperts):
    """Sum of the chosen experts' outputs, weighted by the softmax of their own router logits (arXiv:2508.10925).

    An expert is W_down ((up + 1) * gate * sigmoid(alpha * gate)), with gate at most `limit` and up within +-`limit`;
    gate and up are the even and the odd outputs of one projection. Router and experts always have biases.

    Args:
        config: widths, names and initialization; `hidden` is the width of one expert.
        experts: number of experts.
        chosen: experts of each token.
        alpha: slope of the sigmoid.
        limit: largest gate, and largest |up|.
    """

    no_decay = ("gate_up_bias", "down_bias")

    def __init__(
        self, config: FeedForwardConfig, experts: int = 32, chosen: int = 4, alpha: float = 1.702, limit: float = 7.0
    ) -> None:
        super().__init__(config, experts, chosen, config.hidden, router_bias=True)
        self.alpha = require("experts' alpha", alpha, above=0, remedy="give e.g. 1.702")
        self.limit = require("experts' limit", limit, above=0, remedy="give e.g. 7")
        self.gate_up_bias = nn.Parameter(torch.zeros(experts, 2 * config.hidden))
        self.down_bias = nn.Parameter(torch.zeros(experts, config.d_model))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for bias in (self.gate_up_bias, self.down_bias):
            nn.init.zeros_(bias)

    def hidden(self, tokens: Tensor, rows: Rows) -> Tensor:
        gate_up = grouped_product(tokens, self.gate_up, rows.counts) + self.gate_up_bias[rows.expert]
        gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)

    def outputs(self, hidden: Tensor, rows: Rows) -> Tensor:
        return super().outputs(hidden, rows) + self.down_bias[rows.expert]

    def shard_plan(self) -> dict[str, Split]:
        biases = {"gate_up_bias": Split("last", "ffn_hidden", self.width), "down_bias": Split("added")}
        return super().shard_plan() | {"router.bias": Split("shared")} | biases
