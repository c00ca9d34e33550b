"""Sublayers of a block: a sequence mixer and a feed-forward, each with its own FLOP count and shard plan."""

from torch import Tensor, nn

from sinks.models.counting import linear_flops
from sinks.models.splits import Split


class Sublayer(nn.Module):
    """[B, T, D] -> [B, T, D], added to the residual stream.

    `kind` names it in counts of parameters and operations. A subclass with operations other than products with its
    `nn.Linear` weights overrides `flops_per_token`; one that tensor parallelism can split overrides `shard_plan`.
    """

    kind = "other"

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def flops_per_token(self, tokens: int) -> dict[str, float]:
        """Floating-point operations of a forward pass per token of a sequence of a given length, by kind of module."""
        return linear_flops(self)

    def idle_parameters(self) -> int:
        """Number of parameters that a token does not use: those of experts that are not chosen for it."""
        return 0

    def shard_plan(self) -> dict[str, Split]:
        """How tensor parallelism splits the parameters, by name; a parameter left out cannot be split."""
        return {}


class SequenceMixer(Sublayer):
    """Moves information between tokens, causally: output t depends on inputs 0 ... t alone."""

    kind = "attention"


class FeedForward(Sublayer):
    """Processes every token independently."""

    kind = "feed-forward"
