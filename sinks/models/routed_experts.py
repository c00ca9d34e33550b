"""Base of experts in place of one feed-forward: a router chooses a few of them for each token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.counting import linear_flops
from sinks.models.feed_forward import FeedForwardConfig
from sinks.models.grouped import grouped_product
from sinks.models.layers import Linear
from sinks.models.mixers import FeedForward
from sinks.models.precision import wide
from sinks.models.splits import Split
from sinks.models.taps import Report, Tap


class Rows(NamedTuple):
    """One row for each chosen expert of each token, sorted by expert.

    Args:
        expert: of each row [N * chosen].
        counts: rows of each expert [E].
    """

    expert: Tensor
    counts: Tensor


class Balance(nn.Module):
    """Keeps what a load-balance loss reads of the last forward pass, inside `collecting`.

    `found` is the mean over tokens of the router's probabilities [E], with gradients, and the rows of each expert [E].
    """

    def __init__(self) -> None:
        super().__init__()
        self.collects = False
        self.found: tuple[Tensor, Tensor] | None = None

    def forward(self, logits: Tensor, counts: Tensor) -> None:
        # Always, because a checkpointed block must compute the same when it is run again, after the loss.
        probabilities = wide(logits).softmax(-1).mean(0)
        if self.collects:
            self.found = (probabilities, counts)


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[Balance]]:
    """What a load-balance loss reads, of every layer with experts, first to last, inside the `with` block."""
    balances = [module for module in model.modules() if isinstance(module, Balance)]
    try:
        for balance in balances:
            balance.collects = True
        yield balances
    finally:
        for balance in balances:
            balance.collects, balance.found = False, None


class Router(Linear):
    """Logits of experts. It chooses rather than mixes channels: Muon leaves it to AdamW, as it does the head."""

    kind = "routers"


class RoutedExperts(FeedForward):
    """Base: the chosen experts' outputs, weighted by the softmax of their own router logits.

    These weights are the softmax over all experts, renormalized over the chosen ones. Every token is computed by all
    of its experts; none is dropped. Gate and up are the even and the odd outputs of one projection `gate_up`
    [E, D, 2 * width]; `down` is [E, width, D]. With a listener, `report` passes on the router's `logits` [B, T, E] and
    the experts `chosen` [B, T, chosen].

    A subclass writes `hidden`, and `outputs` if these have a bias.

    Args:
        config: widths, names and initialization.
        experts: number of experts E.
        chosen: experts of each token.
        width: of one expert's hidden layer.
        router_bias: whether the router has a bias.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(self, config: FeedForwardConfig, experts: int, chosen: int, width: int, router_bias: bool) -> None:
        super().__init__()
        self.experts = require("experts", experts, at_least=1, remedy="give e.g. 32")
        self.chosen = require("chosen experts", chosen, at_least=1, at_most=experts, remedy="give e.g. 4")
        self.config, self.width = config, width
        self.gate_up = nn.Parameter(torch.empty(experts, config.d_model, 2 * width))
        self.down = nn.Parameter(torch.empty(experts, width, config.d_model))
        RoutedExperts.reset_parameters(self)  # before the router is built: a module is reset before those in it
        self.router = Router(config.d_model, experts, config.init_std, router_bias)
        self.site = f"{config.site}.router"
        self.balance = Balance()
        self.report = Report()
        self.down_input = Tap(f"{config.site}.down.input")  # [B * T * chosen, width], sorted by expert

    def reset_parameters(self) -> None:
        nn.init.normal_(self.gate_up, std=self.config.init_std)
        nn.init.normal_(self.down, std=self.config.output_std)

    def hidden(self, tokens: Tensor, rows: Rows) -> Tensor:
        """What each row's expert reads [N * chosen, D] -> its hidden layer [N * chosen, width]."""
        raise NotImplementedError

    def outputs(self, hidden: Tensor, rows: Rows) -> Tensor:
        """[N * chosen, width] -> [N * chosen, D]."""
        return grouped_product(hidden, self.down, rows.counts)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [N, D]
        logits = self.router(tokens)
        top, chosen = logits.topk(self.chosen)
        weights = top.softmax(-1)  # [N, chosen]
        expert, order = chosen.flatten().sort(stable=True)
        rows = Rows(expert, (expert[:, None] == torch.arange(self.experts, device=x.device)).sum(0))
        self.balance(logits, rows.counts)
        if self.report.listener is not None:
            self.report(logits=logits.view(*x.shape[:-1], -1), chosen=chosen.view(*x.shape[:-1], -1))
        hidden = self.down_input(self.hidden(tokens[order // self.chosen], rows))
        out = self.outputs(hidden, rows)[order.argsort()].view(*weights.shape, -1)
        return (out * weights.unsqueeze(-1)).sum(1).view_as(x)

    def flops_per_token(self, tokens: int) -> dict[str, float]:
        """Of the router, the chosen experts, and what else has linear maps."""
        counts = linear_flops(self)
        products = 2 * 3 * self.chosen * self.config.d_model * self.width
        counts[self.kind] = counts.get(self.kind, 0) + products
        return counts

    def idle_parameters(self) -> int:
        stacked = [p for p in self.parameters(recurse=False) if p.shape[0] == self.experts]
        return sum(p.numel() // self.experts for p in stacked) * (self.experts - self.chosen)

    def shard_plan(self) -> dict[str, Split]:
        """Every process has its channels of all experts: a part of the output, and so of the router's gradient."""
        hidden = ("ffn_hidden", self.width)
        return {
            "router.weight": Split("shared"),
            "gate_up": Split("last", *hidden),
            "down": Split("columns", *hidden),
        }
