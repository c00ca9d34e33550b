"""Moments that add up: over the batches of a stage, and over the ranks of a run."""

import torch
import torch.distributed as dist
from torch import Tensor

Moments = dict[str, Tensor]


def is_maximum(name: str) -> bool:
    """Whether a moment is combined by maximum rather than by sum."""
    return name.endswith("_max")


def add(total: Moments | None, moments: Moments) -> Moments:
    """Moments of two parts taken together."""
    if total is None:
        return moments
    return {n: torch.maximum(total[n], m) if is_maximum(n) else total[n] + m for n, m in moments.items()}


def total_over_ranks(groups: dict[str, Moments]) -> dict[str, Moments]:
    """Sums and maxima over all ranks of many groups of moments, in two collectives whatever their number."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return groups
    result: dict[str, Moments] = {group: {} for group in groups}
    for maximum, operation in ((False, dist.ReduceOp.SUM), (True, dist.ReduceOp.MAX)):
        keys = [(g, n) for g, named in groups.items() for n in named if is_maximum(n) is maximum]
        if not keys:
            continue
        flat = torch.cat([groups[g][n].flatten() for g, n in keys])
        dist.all_reduce(flat, op=operation)
        for (group, name), part in zip(keys, flat.split([groups[g][n].numel() for g, n in keys]), strict=True):
            result[group][name] = part.view_as(groups[group][name])
    return result
