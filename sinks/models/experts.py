"""Experts in place of one feed-forward: a router chooses a few of them for each token, as in gpt-oss."""

import torch
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.feed_forward import FeedForwardConfig
from sinks.models.grouped import grouped_product
from sinks.models.layers import Linear
from sinks.models.mixers import FeedForward
from sinks.models.splits import Split
from sinks.models.taps import Tap


class Experts(FeedForward):
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
        super().__init__()
        self.experts = require("experts", experts, at_least=1, remedy="give e.g. 32")
        self.chosen = require("chosen experts", chosen, at_least=1, at_most=experts, remedy="give e.g. 4")
        self.alpha = require("experts' alpha", alpha, above=0, remedy="give e.g. 1.702")
        self.limit = require("experts' limit", limit, above=0, remedy="give e.g. 7")
        self.config = config
        self.gate_up = nn.Parameter(torch.empty(experts, config.d_model, 2 * config.hidden))
        self.gate_up_bias = nn.Parameter(torch.empty(experts, 2 * config.hidden))
        self.down = nn.Parameter(torch.empty(experts, config.hidden, config.d_model))
        self.down_bias = nn.Parameter(torch.empty(experts, config.d_model))
        self.reset_parameters()  # before the router is built: a module is reset before those in it
        self.router = Linear(config.d_model, experts, config.init_std, bias=True)
        self.down_input = Tap(f"{config.site}.down.input")  # [B * T * chosen, hidden], sorted by expert

    def reset_parameters(self) -> None:
        nn.init.normal_(self.gate_up, std=self.config.init_std)
        nn.init.normal_(self.down, std=self.config.output_std)
        for bias in (self.gate_up_bias, self.down_bias):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [N, D]
        logits, chosen = self.router(tokens).topk(self.chosen)
        weights = logits.softmax(-1)  # [N, chosen]
        # One row for each chosen expert of each token, sorted by expert.
        expert, order = chosen.flatten().sort(stable=True)
        counts = (expert[:, None] == torch.arange(self.experts, device=x.device)).sum(0)
        rows = tokens[order // self.chosen]
        hidden = self.down_input(self._activation(grouped_product(rows, self.gate_up, counts), expert))
        out = grouped_product(hidden, self.down, counts) + self.down_bias[expert]
        out = out[order.argsort()].view(*weights.shape, -1)
        return (out * weights.unsqueeze(-1)).sum(1).view_as(x)

    def _activation(self, gate_up: Tensor, expert: Tensor) -> Tensor:
        """[N * chosen, 2 * hidden], the expert of each row -> [N * chosen, hidden]."""
        gate, up = (gate_up + self.gate_up_bias[expert]).unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)

    def flops_per_token(self, tokens: int) -> dict[str, float]:
        """Of the router and the chosen experts."""
        return {self.kind: 2 * self.config.d_model * (self.experts + 3 * self.chosen * self.config.hidden)}

    def shard_plan(self) -> dict[str, Split]:
        """Every process has its channels of all experts: a part of the output, and so of the router's gradient."""
        hidden = ("ffn_hidden", self.config.hidden)
        return {
            "router.weight": Split("shared"),
            "router.bias": Split("shared"),
            "gate_up": Split("last", *hidden),
            "gate_up_bias": Split("last", *hidden),
            "down": Split("columns", *hidden),
            "down_bias": Split("added"),
        }
