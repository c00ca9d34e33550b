"""A short causal convolution of each channel on its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.errors import require


class ShortConvolution(nn.Module):
    """y_t = sum_j w_j * x_(t - kernel + 1 + j) by channel, then SiLU: [B, T, C] -> [B, T, C].

    The weight [C, 1, kernel] is that of a depthwise `nn.Conv1d`, and starts as torch starts it; with three dimensions
    it is no matrix that an optimizer could orthogonalize.

    Args:
        channels: number of channels C.
        kernel: tokens that a token sees, its own included.
    """

    def __init__(self, channels: int, kernel: int = 4) -> None:
        super().__init__()
        self.kernel = require("convolution kernel", kernel, at_least=1, remedy="give e.g. 4")
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -(self.kernel**-0.5), self.kernel**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        padded = F.pad(x, (0, 0, self.kernel - 1, 0))
        # By shifted products: a depthwise conv1d would need its input transposed, and back.
        y = padded[:, :tokens] * self.weight[:, 0, 0]
        for j in range(1, self.kernel):
            y = y + padded[:, j : j + tokens] * self.weight[:, 0, j]
        return F.silu(y).to(x.dtype)
