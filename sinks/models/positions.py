"""Positions of tokens: rotary angles on queries and keys, learned rows on the embedding, or nothing."""

from typing import Literal

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.layers import Embedding
from sinks.models.rope import Rope

Position = Literal["rope", "learned", "none"]


class Rotary(nn.Module):
    """Rotates the two halves of each head vector by an angle that grows with position (arXiv:2104.09864).

    Args:
        width: number of channels that rotate; must be even.
        context_length: number of positions.
        base: wavelength base.
        rope: how frequencies are stretched.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, width: int, context_length: int, base: float, rope: Rope = Rope()) -> None:
        super().__init__()
        self.width, self.context_length, self.base, self.rope = width, context_length, base, rope
        self.register_buffer("cosine", torch.empty(context_length, width), persistent=False)
        self.register_buffer("sine", torch.empty(context_length, width), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        position = torch.arange(self.context_length, dtype=torch.float64)
        angle = torch.outer(position, self.rope.frequencies(self.width, self.base))
        angle = torch.cat([angle, angle], dim=-1)
        self.cosine.copy_(angle.cos() * self.rope.attention_factor)
        self.sine.copy_(angle.sin() * self.rope.attention_factor)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, width] -> the same."""
        length = x.shape[-2]
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (x * self.cosine[:length] + rotated * self.sine[:length]).to(x.dtype)


class PartialRotary(Rotary):
    """Rotates the first channels of each head vector, and leaves the others as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, head_dim] -> the same."""
        return torch.cat([super().forward(x[..., : self.width]), x[..., self.width :]], dim=-1)


def rotary(head_dim: int, context_length: int, base: float, rope: Rope = Rope()) -> Rotary:
    """Rotary positions of heads of a width.

    Raises:
        UserError: if the number of channels that rotate is odd.
    """
    width = int(head_dim * rope.fraction)
    if width % 2 or not width:
        raise UserError(
            f"head_dim is {head_dim}, of which {width} channels rotate, but rotary positions need an even number of "
            f"them: give head_dim {head_dim + 1}, or another rope.fraction"
            if rope.fraction < 1
            else f"head_dim is {head_dim}, but rotary positions need an even one: give {head_dim + 1}"
        )
    return (Rotary if width == head_dim else PartialRotary)(width, context_length, base, rope)


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
