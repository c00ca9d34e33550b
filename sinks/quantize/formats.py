"""Number formats, simulated: values go in, and those that the format can hold come out, in the dtype they had.

Each works along the last dimension and rounds half to even. Arithmetic is that of float32: other dtypes are converted
and back. A scale is the float32 number that stored codes are multiplied by.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # a scale is never zero
E2M1_LARGEST, E4M3_LARGEST = 6.0, 448.0


class Format(ABC):
    """Numbers under scales.

    `block` is how many values of a row have one scale; None: all of them. `outer` says whether scales depend on
    `largest`; a format with scales of its own for blocks may not need it.
    """

    block: int | None = None
    outer = True

    @abstractmethod
    def element(self, x: Tensor) -> Tensor:
        """The nearest numbers under a scale of one."""

    @abstractmethod
    def scale(self, peak: Tensor, largest: Tensor) -> Tensor:
        """The scale under which |x| = `peak` is the largest number; `largest` as in a call."""

    def at(self, x: Tensor, scale: Tensor) -> Tensor:
        """The nearest numbers under a scale."""
        return self.element(x / torch.where(scale > 0, scale, 1.0)) * scale

    def __call__(self, x: Tensor, largest: Tensor) -> Tensor:
        """Values [..., K] of the format.

        Args:
            x: values [..., K] float32.
            largest: |x| that becomes the format's largest number, of a shape that broadcasts over x; more saturates.
        """
        return self.by_block(x, largest, lambda values, peak, outer: self.at(values, self.scale(peak, outer)))

    def by_block(self, x: Tensor, largest: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """A function of the values of a block, their peak and `largest`, for all blocks; returns such values."""
        if self.block is None:
            return function(x, largest, largest)
        outer = largest.unsqueeze(-1)
        return in_blocks(x, self.block, lambda values: function(values, _largest(values), outer))


@dataclass(frozen=True)
class Integer(Format):
    """Symmetric integers of some bits; the most negative code is not used.

    Args:
        bits: including the sign.
    """

    bits: int

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def element(self, x: Tensor) -> Tensor:
        return x.round().clamp(-self._top, self._top)

    def scale(self, peak: Tensor, largest: Tensor) -> Tensor:
        return peak.clamp_min(TINY) / self._top


class FP8(Format):
    """E4M3 (OCP OFP8: 448 at most, no infinity)."""

    def element(self, x: Tensor) -> Tensor:
        return e4m3(x)

    def scale(self, peak: Tensor, largest: Tensor) -> Tensor:
        return peak.clamp_min(TINY) / E4M3_LARGEST


class NVFP4(Format):
    """E2M1 in blocks of 16, each with a scale in E4M3 below one in float32 (arXiv:2601.22966, section 5.3)."""

    block = 16

    def element(self, x: Tensor) -> Tensor:
        return e2m1(x)

    def scale(self, peak: Tensor, largest: Tensor) -> Tensor:
        outer = largest.clamp_min(TINY) / (E2M1_LARGEST * E4M3_LARGEST)
        return e4m3(peak / E2M1_LARGEST / outer) * outer


class MXFP4(Format):
    """E2M1 in blocks of 32 below a power of two (OCP MX 1.0): the floor of log2 of the largest, less 2."""

    block = 32
    outer = False

    def element(self, x: Tensor) -> Tensor:
        return e2m1(x)

    def scale(self, peak: Tensor, largest: Tensor) -> Tensor:
        return torch.exp2((torch.frexp(peak).exponent - 3).clamp(-127, 127).to(peak.dtype))


@dataclass(frozen=True)
class Blocks(Format):
    """A format with a float32 scale for each block.

    Args:
        format: of the values.
        block: values under one scale.
    """

    format: Format
    block: int
    outer = False

    def element(self, x: Tensor) -> Tensor:
        return self.format.element(x)

    def scale(self, peak: Tensor, largest: Tensor) -> Tensor:
        return self.format.scale(peak, peak)


def e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives, half to even; saturates at 6."""
    magnitude = x.abs().clamp_max(E2M1_LARGEST)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign((magnitude / step).round() * step, x)


def e4m3(x: Tensor) -> Tensor:
    """The nearest E4M3 number, half to even; saturates at 448, where torch's own cast differs between versions."""
    return x.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


def in_blocks(x: Tensor, size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of blocks [..., n, size] of the last dimension; what is left over is a block of its own."""
    whole = x.shape[-1] // size * size
    parts = [function(x[..., :whole].unflatten(-1, (-1, size))).flatten(-2)] if whole else []
    if whole < x.shape[-1]:
        parts.append(function(x[..., None, whole:]).flatten(-2))
    return torch.cat(parts, -1)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True)
