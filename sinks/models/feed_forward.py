"""Feed-forward sublayers: [B, T, D] -> [B, T, D]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.models.layers import Linear
from sinks.models.mixers import FeedForward
from sinks.models.splits import Split
from sinks.models.taps import Tap


@dataclass(frozen=True)
class FeedForwardConfig:
    """What a feed-forward sublayer is built from.

    Args:
        site: name of the place, e.g. `blocks.0.feed_forward`.
        d_model: width of the residual stream.
        hidden: width of the hidden layer.
        init_std: of the projections that read the stream.
        output_std: of the projection that writes to it.
        bias: whether projections have biases.
    """

    site: str
    d_model: int
    hidden: int
    init_std: float
    output_std: float
    bias: bool = False


class DenseFeedForward(FeedForward):
    """Base: a projection up to the hidden layer, and one back into the residual stream, tapped at its input.

    Args:
        config: widths, names and initialization.
    """

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        self.config = config
        self.up = Linear(config.d_model, config.hidden, config.init_std, config.bias)
        self.down_input = Tap(f"{config.site}.down.input")
        self.down = Linear(config.hidden, config.d_model, config.output_std, config.bias)

    def shard_plan(self) -> dict[str, Split]:
        hidden = ("ffn_hidden", self.config.hidden)
        read = {f"{name}.{kind}": Split("rows", *hidden) for name in ("up", "gate") for kind in ("weight", "bias")}
        return read | {"down.weight": Split("columns", *hidden), "down.bias": Split("added")}


class GELU(DenseFeedForward):
    """W_down gelu(W_up x)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.down_input(F.gelu(self.up(x))))


class SwiGLU(DenseFeedForward):
    """W_down (silu(W_gate x) * W_up x) (arXiv:2002.05202)."""

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__(config)
        self.gate = Linear(config.d_model, config.hidden, config.init_std, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.down_input(F.silu(self.gate(x)) * self.up(x)))


class SigmoidGLU(SwiGLU):
    """W_down (sigmoid(W_gate x) * W_up x): bounded gates (arXiv:2601.22966, Table 1 rows 15-18)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.down_input(torch.sigmoid(self.gate(x)) * self.up(x)))
