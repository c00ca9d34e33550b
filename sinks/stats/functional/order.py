"""Order statistics along the last axis. On the CPU numpy selects, with vector instructions that torch lacks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of a longer vector the median is sought near the median of a sample of this size.
SAMPLE = 4096
# How far, as a fraction of the sample: some six standard deviations of independent values.
MARGIN = 0.05


def lower_median(x: Tensor) -> Tensor:
    """The median [...] of x [..., N], of an even number the smaller middle one; NaN where a value is NaN."""
    if _by_torch(x):
        return x.median(dim=-1).values
    values, middle = x.detach().numpy(), (x.shape[-1] - 1) // 2
    if x.shape[-1] <= 4 * SAMPLE:
        found = np.partition(values, middle, axis=-1)[..., middle].copy()
    else:
        found = np.apply_along_axis(_median_of_many, -1, values, middle)
    return torch.where(x.amax(-1).isnan(), torch.nan, torch.from_numpy(found))


def _median_of_many(values: NDArray[np.floating], middle: int) -> np.floating:
    """The value [] at place `middle` of a sorted vector, out of the few between two values of a sorted sample."""
    sample = np.sort(values[:: len(values) // SAMPLE | 1])
    center, reach = len(sample) // 2, int(MARGIN * len(sample))
    low, high = sample[center - reach], sample[center + reach]
    place = middle - np.count_nonzero(values < low)
    between = values[(values >= low) & (values <= high)]
    if not 0 <= place < len(between):  # an unlucky sample
        return np.partition(values, middle)[middle]
    return np.partition(between, place)[place]


def largest(x: Tensor, count: int) -> Tensor:
    """The `count` largest [..., count] of x [..., N] in descending order; NaN counts as the largest."""
    first = x.shape[-1] - count
    if _by_torch(x) or first < 1:
        return x.topk(count, dim=-1).values
    found = torch.from_numpy(np.partition(x.detach().numpy(), first, axis=-1)[..., first:].copy())
    return found.sort(dim=-1, descending=True).values


def median_and_largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`lower_median` [...] and `largest` [..., count] of x [..., N], for little more than one of them on the CPU."""
    if _by_torch(x):
        return lower_median(x), largest(x, count)
    ordered = torch.from_numpy(np.sort(x.detach().numpy(), axis=-1))  # NaN comes last
    top = ordered[..., -count:].flip(-1)
    return torch.where(top[..., 0].isnan(), torch.nan, ordered[..., (x.shape[-1] - 1) // 2]), top


def _by_torch(x: Tensor) -> bool:
    return x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling()
