"""What rotary positions are built from: how much of a head rotates, and how frequencies are stretched."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinks.errors import require


@dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by one factor: positions are interpolated (arXiv:2306.15595).

    Args:
        factor: how many times longer the context becomes.
        kind: names this scaling in a configuration.
    """

    factor: float
    kind: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        require("rope.scaling.factor", self.factor, above=0, remedy="give e.g. 4")

    attention_factor = 1.0

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Radians per token [R / 2], stretched."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Low frequencies divided by a factor, high ones kept, those between interpolated, as in Llama 3.1.

    Args:
        factor: how many times longer the context becomes.
        original_context: tokens of the first training.
        low_frequency_factor: full turns within the original context below which a frequency is divided.
        high_frequency_factor: turns above which it is kept.
        kind: names this scaling in a configuration.
    """

    factor: float
    original_context: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    kind: Literal["llama3"] = "llama3"

    def __post_init__(self) -> None:
        require("rope.scaling.factor", self.factor, above=0, remedy="give e.g. 8")
        require("rope.scaling.original_context", self.original_context, at_least=1, remedy="give e.g. 8192")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        require("rope.scaling.low_frequency_factor", low, above=0, remedy="give e.g. 1")
        require("rope.scaling.high_frequency_factor", high, above=low, remedy="give e.g. 4")

    attention_factor = 1.0

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Radians per token [R / 2], stretched."""
        turns = self.original_context * frequencies / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: low frequencies divided by a factor, and queries and keys made longer (arXiv:2309.00071, section 3).

    Args:
        factor: how many times longer the context becomes.
        original_context: tokens of the first training.
        beta_fast: full turns within the original context above which a frequency is kept.
        beta_slow: turns below which it is divided by the factor; a ramp over dimensions lies between.
        attention: factor on rotated queries and on rotated keys; 0.1 ln(factor) + 1 if not given.
        truncate: whether the ends of the ramp are rounded to whole dimensions.
        kind: names this scaling in a configuration.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention: float | None = None
    truncate: bool = True
    kind: Literal["yarn"] = "yarn"

    def __post_init__(self) -> None:
        require("rope.scaling.factor", self.factor, above=0, remedy="give e.g. 32")
        require("rope.scaling.original_context", self.original_context, at_least=1, remedy="give e.g. 4096")
        require("rope.scaling.beta_slow", self.beta_slow, above=0, remedy="give e.g. 1")
        require("rope.scaling.beta_fast", self.beta_fast, at_least=self.beta_slow, remedy="give e.g. 32")
        if self.attention is not None:
            require("rope.scaling.attention", self.attention, above=0, remedy="leave it out for the default")

    @property
    def attention_factor(self) -> float:
        if self.attention is not None:
            return self.attention
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Radians per token [R / 2], stretched."""
        half = len(frequencies)
        # The dimension whose frequency base^(-dimension / half) makes so many turns within the original context.
        first, last = (
            half * math.log(self.original_context / (turns * 2 * math.pi)) / math.log(base)
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        width = last - first or 0.001  # a step where the ends meet
        divided = ((torch.arange(half, dtype=frequencies.dtype) - first) / width).clamp(0, 1)
        return frequencies * (1 - divided + divided / self.factor)


@dataclass(frozen=True)
class Rope:
    """What rotary positions are, apart from the wavelength base.

    Args:
        fraction: of each head that rotates: its first channels.
        scaling: how frequencies are stretched for a longer context.
    """

    fraction: float = 1.0
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    def __post_init__(self) -> None:
        require("rope.fraction", self.fraction, above=0, at_most=1, remedy="give 1 to rotate whole heads")

    @property
    def attention_factor(self) -> float:
        """Factor on rotated queries and keys."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor

    def frequencies(self, width: int, base: float) -> Tensor:
        """Radians per token of each pair of channels [R / 2], float64, of R rotated channels."""
        exponent = torch.arange(0, width, 2, dtype=torch.float64) / width
        frequencies = base**-exponent
        return frequencies if self.scaling is None else self.scaling.scale(frequencies, base)
