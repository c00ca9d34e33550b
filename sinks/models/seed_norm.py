"""RMSNorm whose gain depends on the token."""

import torch
from torch import Tensor, nn

from sinks.errors import require
from sinks.models.norms import Norm
from sinks.models.rms_norm import rms_norm


class SeeDNorm(Norm):
    """y = (weight + alpha * tanh(x . beta)) * x / rms(x) (Cai et al. 2025, arXiv:2510.22777).

    The dot product reads x itself, so that the gain depends on the norm of the token. Beta starts at zero: the first
    step is RMSNorm's. To the statistics the token's gain is a gate, of what is divided by the RMS; a gain that all
    tokens share is not defined.

    Args:
        d_model: width D of the residual stream.
        eps: added to the mean square.
        alpha: initial size of what tanh adds to the gain; at zero, beta would never get a gradient.
    """

    def __init__(self, d_model: int, eps: float = 1e-6, alpha: float = 1.0) -> None:
        super().__init__(d_model)
        self.eps = require("norm eps", eps, at_least=0, remedy="give e.g. 1e-6")
        self.initial_alpha = require("seednorm alpha", alpha, above=0, remedy="give e.g. 1")
        self.weight = nn.Parameter(torch.ones(d_model))
        self.alpha = nn.Parameter(torch.full((d_model,), alpha))
        self.beta = nn.Parameter(torch.zeros(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.constant_(self.alpha, self.initial_alpha)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight + self.alpha * torch.tanh((x * self.beta).sum(-1, keepdim=True))
        ones = x.new_ones(self.d_model)
        normed = rms_norm(x, ones, self.eps)
        if self.internals is not None:
            self.internals |= {"divided": x, "weight": ones, "normalized": normed, "gate": gain, "normed": normed}
        return gain * normed
