"""Order statistics along the last axis. On the CPU numpy selects, with vector instructions that torch lacks."""

import numpy as np
import torch
from torch import Tensor


def lower_median(x: Tensor) -> Tensor:
    """The median [...] of x [..., N], of an even number the smaller middle one; NaN where a value is NaN."""
    if _by_torch(x):
        return x.median(dim=-1).values
    middle = (x.shape[-1] - 1) // 2
    found = torch.from_numpy(np.partition(x.detach().numpy(), middle, axis=-1)[..., middle].copy())
    return torch.where(x.amax(-1).isnan(), torch.nan, found)


def largest(x: Tensor, count: int) -> Tensor:
    """The `count` largest [..., count] of x [..., N] in descending order; NaN counts as the largest."""
    first = x.shape[-1] - count
    if _by_torch(x) or first < 1:
        return x.topk(count, dim=-1).values
    found = torch.from_numpy(np.partition(x.detach().numpy(), first, axis=-1)[..., first:].copy())
    return found.sort(dim=-1, descending=True).values


def _by_torch(x: Tensor) -> bool:
    return x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling()
