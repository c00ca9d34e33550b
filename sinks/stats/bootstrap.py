"""Intervals of a mean over tokens that come in units, rows or documents, within which they are alike."""

from typing import TypedDict

import torch
from torch import Tensor

RESAMPLES = 10_000


class Interval(TypedDict):
    """A mean with its 95 % interval, which fewer than two units do not give."""

    mean: float
    low: float | None
    high: float | None


def interval(sums: Tensor, counts: Tensor, seed: int) -> Interval:
    """Mean over tokens, with the 95 % interval of a bootstrap over units (percentiles of 10,000 draws).

    Args:
        sums: over the tokens of each unit [U] float64.
        counts: tokens of each unit [U]; some may have none, not all.
        seed: of the bootstrap.
    """
    mean = (sums.sum() / counts.sum()).item()
    if (counts > 0).sum() < 2:
        return {"mean": mean, "low": None, "high": None}
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)  # NaN where no unit with a token was drawn
    low, high = means.nanquantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return {"mean": mean, "low": low, "high": high}


def as_text(found: Interval, digits: int) -> str:
    """Mean and interval with signs, such as `+0.002 [-0.001, +0.004]`; only the mean where there is no interval."""
    text, low, high = f"{found['mean']:+.{digits}f}", found["low"], found["high"]
    return text if low is None or high is None else f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"
