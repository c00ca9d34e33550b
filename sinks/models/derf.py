"""A pointwise function in place of a norm: the error function."""

import torch
from torch import Tensor, nn

from sinks.models.norms import DyT


class Derf(DyT):
    """y = weight * erf(alpha * x + shift) + bias: pointwise, no normalizer (Chen et al. 2025, arXiv:2512.10938).

    Args:
        d_model: width D of the residual stream.
        alpha: initial slope; small embeddings need a large one, or erf stays near zero.
    """

    def __init__(self, d_model: int, alpha: float = 0.5) -> None:
        super().__init__(d_model, alpha)
        self.shift = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        if self.internals is not None:
            self.internals |= {"gain": self.weight}
        return self.weight * torch.erf(self.alpha * x + self.shift) + self.bias
