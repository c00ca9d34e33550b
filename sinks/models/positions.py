"""Positions of tokens: rotary angles on queries and keys, learned rows on the embedding, or nothing."""

from typing import Literal

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.layers import Embedding

Position = Literal["rope", "learned", "none"]


class Rotary(nn.Module):
    """Rotates the two halves of each head vector by an angle that grows with position (arXiv:2104.09864).

    Args:
        head_dim: width of a head; must be even.
        context_length: number of positions.
        base: wavelength base.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, context_length: int, base: float) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"head_dim is {head_dim}, but rotary positions need an even one: give {head_dim + 1}")
        self.head_dim, self.context_length, self.base = head_dim, context_length, base
        self.register_buffer("cosine", torch.empty(context_length, head_dim), persistent=False)
        self.register_buffer("sine", torch.empty(context_length, head_dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        angle = torch.outer(torch.arange(self.context_length, dtype=torch.float64), self.base**-exponent)
        angle = torch.cat([angle, angle], dim=-1)
        self.cosine.copy_(angle.cos())
        self.sine.copy_(angle.sin())

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, head_dim] -> the same."""
        length = x.shape[-2]
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (x * self.cosine[:length] + rotated * self.sine[:length]).to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned row per position to the embedding.

    Args:
        context_length: number of positions.
        d_model: width of the residual stream.
        init_std: standard deviation of the initial rows.
    """

    def __init__(self, context_length: int, d_model: int, init_std: float) -> None:
        super().__init__()
        self.rows = Embedding(context_length, d_model, init_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the same."""
        return x + self.rows.weight[: x.shape[1]]
