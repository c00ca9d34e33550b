"""RMSNorms whose gain is not one free factor per channel: y = gain * x / rms(x)."""

import torch
from torch import Tensor, nn

from sinks.models.norms import RootMeanSquareNorm


class GainFreeRMSNorm(RootMeanSquareNorm):
    """y = x / rms(x): no gain that could discount a channel.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def gain(self, x: Tensor) -> Tensor:
        return x.new_ones(self.d_model)


class ScalarGainRMSNorm(RootMeanSquareNorm):
    """y = weight * x / rms(x), with one weight for all channels (SSNorm, arXiv:2506.19697); it starts at one.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)
        self.weight = nn.Parameter(torch.ones(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def gain(self, x: Tensor) -> Tensor:
        return self.weight.expand(self.d_model)


class ZeroCenteredRMSNorm(RootMeanSquareNorm):
    """y = (1 + weight) * x / rms(x), as in Qwen3-Next; the weight starts at zero.

    Weight decay (`optimization.scale_weight_decay`) pulls the gain to one, not to zero.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__(d_model, eps)
        self.weight = nn.Parameter(torch.zeros(d_model))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def gain(self, x: Tensor) -> Tensor:
        return 1 + self.weight
