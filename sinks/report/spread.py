"""Spread of a measure over seeds, and the rules for comparing two spreads."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

# A change is large if it exceeds this fraction of the baseline's value.
MATERIAL = 1 / 3

Move = Literal["falls", "falls a little", "rises", "rises a little", "stays", "unclear"]


@dataclass(frozen=True)
class Spread:
    """One measure over the seeds of a variant.

    Args:
        mean: mean over seeds.
        low: smallest value.
        high: largest value.
        n: number of seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Mean and range of the finite values; None if there are none."""
        finite = np.asarray([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
        if not len(finite):
            return None
        return cls(float(finite.mean()), float(finite.min()), float(finite.max()), len(finite))

    @property
    def half_range(self) -> float:
        """Half the range over seeds: not a standard error, and zero for one seed."""
        return (self.high - self.low) / 2


def move(baseline: Spread, variant: Spread) -> Move:
    """How a measure changes from the baseline to a variant.

    "falls" or "rises": by more than the sum of the half ranges; "a little" if by at most `MATERIAL` of the baseline's
    mean. Within the half ranges it "stays", or is "unclear" if it exceeds that fraction.
    """
    change = variant.mean - baseline.mean
    large = abs(change) > MATERIAL * abs(baseline.mean)
    if abs(change) <= baseline.half_range + variant.half_range:
        return "unclear" if large else "stays"
    if change < 0:
        return "falls" if large else "falls a little"
    return "rises" if large else "rises a little"
