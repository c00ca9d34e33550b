"""Intervals of a mean over tokens that come in units, rows or documents, within which they are alike."""

import torch
from torch import Tensor

RESAMPLES = 10_000


def interval(sums: Tensor, counts: Tensor, seed: int) -> dict[str, float]:
    """Mean over tokens, with the 95 % interval of a bootstrap over units (percentiles of 10,000 draws).

    Args:
        sums: over the tokens of each unit [U] float64.
        counts: tokens of each unit [U]; some may have none, not all.
        seed: of the bootstrap.
    """
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)  # NaN where no unit with a token was drawn
    low, high = means.nanquantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return {"mean": (sums.sum() / counts.sum()).item(), "low": low, "high": high}
