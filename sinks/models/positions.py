"""Positions of tokens: rotary angles on queries and keys, learned rows on the embedding, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.layers import Embedding
from sinks.models.rope import Frequencies

Position = Literal["rope", "learned", "none"]


class Rotary(nn.Module):
    """Rotates the two halves of each head vector by an angle that grows with position (arXiv:2104.09864).

    Args:
        context_length: number of positions.
        frequencies: of the channels that rotate.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, context_length: int, frequencies: Frequencies) -> None:
        super().__init__()
        self.context_length, self.frequencies, self.width = context_length, frequencies, frequencies.width
        self.register_buffer("cosine", torch.empty(context_length, self.width), persistent=False)
        self.register_buffer("sine", torch.empty(context_length, self.width), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        position = torch.arange(self.context_length, dtype=torch.float64)
        angle = torch.outer(position, self.frequencies.values())
        angle = torch.cat([angle, angle], dim=-1)
        self.cosine.copy_(angle.cos() * self.frequencies.attention_factor)
        self.sine.copy_(angle.sin() * self.frequencies.attention_factor)

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


@dataclass(frozen=True)
class Rope:
    """What rotary positions are built from.

    Args:
        base: wavelength base.
        fraction: of each head that rotates: its first channels.
        frequencies: of the rotation, plain or stretched.
    """

    base: float = 10000.0
    fraction: float = 1.0
    frequencies: Callable[[int, float], Frequencies] = Frequencies

    def rotary(self, head_dim: int, context_length: int) -> Rotary:
        """The module for heads of a width.

        Raises:
            UserError: if the number of channels that rotate is odd.
        """
        width = int(head_dim * self.fraction)
        if width == head_dim and width % 2:
            raise UserError(f"head_dim is {head_dim}, but rotary positions need an even one: give {head_dim + 1}")
        if width % 2 or not width:
            raise UserError(
                f"rope_fraction {self.fraction} of head_dim {head_dim} is {width} channels, but rotary positions need "
                "an even number of them: give another fraction"
            )
        kind = Rotary if width == head_dim else PartialRotary
        return kind(context_length, self.frequencies(width, self.base))


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
