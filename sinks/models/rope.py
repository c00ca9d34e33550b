"""Frequencies of rotary positions, and how they are stretched for a longer context.

A class of frequencies is built from `width` and `base`; its other constructor arguments are its options.
"""

import math

import torch
from torch import Tensor

from sinks.errors import require


class Frequencies:
    """base^(-2 i / width) radians per token for each pair i of channels (arXiv:2104.09864).

    Args:
        width: number R of channels that rotate.
        base: wavelength base.
    """

    attention_factor = 1.0  # on rotated queries and on rotated keys

    def __init__(self, width: int, base: float) -> None:
        self.width, self.base = width, base

    def plain(self) -> Tensor:
        """[R / 2] float64, not stretched."""
        exponent = torch.arange(0, self.width, 2, dtype=torch.float64) / self.width
        return self.base**-exponent

    def values(self) -> Tensor:
        """Radians per token [R / 2] float64."""
        return self.plain()


class Linear(Frequencies):
    """All frequencies divided by one factor: positions are interpolated (arXiv:2306.15595).

    Args:
        width: number R of channels that rotate.
        base: wavelength base.
        factor: how many times longer the context becomes.
    """

    def __init__(self, width: int, base: float, factor: float) -> None:
        super().__init__(width, base)
        self.factor = require("rope factor", factor, above=0, remedy="give e.g. 4")

    def values(self) -> Tensor:
        return self.plain() / self.factor


class Llama3(Frequencies):
    """Low frequencies divided by a factor, high ones kept, those between interpolated, as in Llama 3.1.

    Args:
        width: number R of channels that rotate.
        base: wavelength base.
        factor: how many times longer the context becomes.
        original_context: tokens of the first training.
        low: full turns within the original context below which a frequency is divided.
        high: full turns above which it is kept.
    """

    def __init__(
        self, width: int, base: float, factor: float, original_context: int, low: float = 1.0, high: float = 4.0
    ) -> None:
        super().__init__(width, base)
        self.factor = require("rope factor", factor, above=0, remedy="give e.g. 8")
        self.original_context = require("rope original_context", original_context, at_least=1, remedy="give e.g. 8192")
        self.low = require("rope low", low, above=0, remedy="give e.g. 1")
        self.high = require("rope high", high, above=low, remedy="give e.g. 4")

    def values(self) -> Tensor:
        turns = self.original_context * self.plain() / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return self.plain() * (kept + (1 - kept) / self.factor)


class Yarn(Frequencies):
    """YaRN: low frequencies divided by a factor, and queries and keys made longer (arXiv:2309.00071, section 3).

    Args:
        width: number R of channels that rotate.
        base: wavelength base.
        factor: how many times longer the context becomes.
        original_context: tokens of the first training.
        fast: full turns within the original context above which a frequency is kept.
        slow: full turns below which it is divided; a ramp over dimensions lies between.
        attention_factor: on rotated queries and on rotated keys; 0.1 ln(factor) + 1 if not given.
        truncate: whether the ends of the ramp are rounded to whole dimensions.
    """

    def __init__(
        self,
        width: int,
        base: float,
        factor: float,
        original_context: int,
        fast: float = 32.0,
        slow: float = 1.0,
        attention_factor: float | None = None,
        truncate: bool = True,
    ) -> None:
        super().__init__(width, base)
        self.factor = require("rope factor", factor, above=0, remedy="give e.g. 32")
        self.original_context = require("rope original_context", original_context, at_least=1, remedy="give e.g. 4096")
        self.slow = require("rope slow", slow, above=0, remedy="give e.g. 1")
        self.fast = require("rope fast", fast, at_least=slow, remedy="give e.g. 32")
        self.truncate = truncate
        if attention_factor is None:
            attention_factor = 0.1 * math.log(max(factor, 1.0)) + 1.0
        self.attention_factor = require("rope attention_factor", attention_factor, above=0, remedy="give e.g. 1")

    def _dimension(self, turns: float) -> float:
        """The pair of channels that makes so many full turns within the original context."""
        return self.width * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    def values(self) -> Tensor:
        first, last = self._dimension(self.fast), self._dimension(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.width - 1)
        pairs = torch.arange(self.width // 2, dtype=torch.float64)
        divided = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)  # a step where the ends meet
        return self.plain() * (1 - divided + divided / self.factor)
