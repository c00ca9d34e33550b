"""LayerNorm of the residual stream."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.norms import Norm


class LayerNorm(Norm):
    """y = weight * (x - mean(x)) / std(x) + bias, over channels (Ba et al. 2016, arXiv:1607.06450).

    Args:
        d_model: width D of the residual stream.
        eps: added to the variance.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model)
        self.eps = require("norm eps", eps, at_least=0, remedy="give e.g. 1e-5")
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.internals is not None:
            self.internals |= {"gain": self.weight}
        return F.layer_norm(x, (self.d_model,), self.weight, self.bias, self.eps)
