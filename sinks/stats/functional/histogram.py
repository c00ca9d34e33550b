"""Quantiles that add up: a fixed log-spaced histogram of magnitudes, the same on one rank and on many."""

import torch
from torch import Tensor

from sinks.stats.functional.sums import occurrences

# |h| is counted in a fixed log-spaced histogram: 16 bins per octave (4.4 % per bin) between 2^-20 and 2^20.
HISTOGRAM_BINS_PER_OCTAVE = 16
HISTOGRAM_OCTAVES = (-20, 20)
HISTOGRAM_BINS = HISTOGRAM_BINS_PER_OCTAVE * (HISTOGRAM_OCTAVES[1] - HISTOGRAM_OCTAVES[0])


def magnitude_bins(x: Tensor) -> Tensor:
    """The bin of each |x|, int64; the outer bins include values beyond, NaN counts as zero."""
    low, high = HISTOGRAM_OCTAVES
    octave = x.detach().float().abs().nan_to_num_(0.0).clamp_(2.0**low, 2.0**high).log2_()
    return octave.sub_(low).mul_(HISTOGRAM_BINS_PER_OCTAVE).long().clamp_(0, HISTOGRAM_BINS - 1)


def magnitude_histogram(x: Tensor) -> Tensor:
    """Counts of |x| [HISTOGRAM_BINS] in the fixed log-spaced histogram; the outer bins include values beyond."""
    return occurrences(magnitude_bins(x), HISTOGRAM_BINS)


def histogram_quantile(counts: Tensor, quantile: float) -> Tensor:
    """Upper edge of the bin that holds a quantile of |x| (resolution 4.4 %); NaN for an empty histogram."""
    cumulative = counts.double().cumsum(0)
    index = torch.searchsorted(cumulative, quantile * cumulative[-1]).clamp(max=HISTOGRAM_BINS - 1)
    edge = 2.0 ** (HISTOGRAM_OCTAVES[0] + (index + 1).double() / HISTOGRAM_BINS_PER_OCTAVE)
    return torch.where(cumulative[-1] > 0, edge, torch.nan).float()
