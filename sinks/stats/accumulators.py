"""Accumulators that add up: over the batches of a stage, and over the ranks of a run."""

from collections.abc import Callable, Hashable
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Accumulators = dict[str, Tensor]
Key = TypeVar("Key", bound=Hashable)
Combination = Literal["sum", "max", "min"]
COMBINE: dict[Combination, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}
# Identity element of each combination.
NEUTRAL: dict[Combination, float] = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}


def combination(name: str) -> Combination:
    """How an accumulator is combined: `_max` by maximum, `_min` by minimum, all others by sum."""
    if name.endswith("_max"):
        return "max"
    return "min" if name.endswith("_min") else "sum"


def add(total: Accumulators | None, accumulators: Accumulators) -> Accumulators:
    """Combined accumulators of two parts."""
    if total is None:
        return accumulators
    return {name: COMBINE[combination(name)](total[name], accumulator) for name, accumulator in accumulators.items()}


def part_of_heads(accumulators: Accumulators, rank: int, size: int, per_head: bool) -> Accumulators:
    """What rank `rank` of `size` tensor-parallel ranks adds to the total over all ranks.

    Args:
        accumulators: of a site; per head, of the heads this rank holds: those with dimensions have heads first.
        rank: within the tensor-parallel group.
        size: of that group.
        per_head: whether the ranks hold different heads; otherwise all hold the same accumulators, and one reports.
    """
    found: Accumulators = {}
    for name, accumulator in accumulators.items():
        neutral = NEUTRAL[combination(name)]
        if per_head and accumulator.dim():
            found[name] = accumulator.new_full((size, *accumulator.shape), neutral)
            found[name][rank] = accumulator
            found[name] = found[name].flatten(0, 1)
        else:
            counted = rank == 0 or (per_head and name == "nonfinite")
            found[name] = accumulator if counted else torch.full_like(accumulator, neutral)
    return found


def total_over_ranks(groups: dict[Key, Accumulators], may_be_empty: bool = False) -> dict[Key, Accumulators]:
    """Sums, maxima and minima over all ranks of many groups of accumulators, in two collectives in total.

    Every rank must hold the same accumulators, or none if these may be empty, which takes a third collective: then the
    totals are empty on every rank. A NaN on any rank makes the extreme NaN everywhere: the collective
    maximum of gloo and NCCL may drop it, so the number of NaN is reduced with the sums.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return groups
    if may_be_empty:
        # An empty rank has no tensor that shows its device.
        held = torch.tensor(len(groups), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        if not int(_all_reduce([held], dist.ReduceOp.MIN)[0]):
            return {}
    keys = [(group, name) for group, named in groups.items() for name in named]
    sums = [key for key in keys if combination(key[1]) == "sum"]
    extremes = [key for key in keys if combination(key[1]) != "sum"]
    signed = [groups[g][n] if combination(n) == "max" else -groups[g][n] for g, n in extremes]
    result: dict[Key, Accumulators] = {group: {} for group in groups}
    if not keys:
        return result

    addends = [groups[g][n] for g, n in sums] + [torch.isnan(x).to(x.dtype) for x in signed]
    summed = _all_reduce(addends, dist.ReduceOp.SUM)
    for (group, name), x in zip(sums, summed[: len(sums)], strict=True):
        result[group][name] = x
    if extremes:
        found = _all_reduce([torch.where(torch.isnan(x), -torch.inf, x) for x in signed], dist.ReduceOp.MAX)
        for (group, name), x, broken in zip(extremes, found, summed[len(sums) :], strict=True):
            value = torch.where(broken > 0, torch.nan, x)
            result[group][name] = value if combination(name) == "max" else -value
    return {group: {name: result[group][name] for name in named} for group, named in groups.items()}


def _all_reduce(tensors: list[Tensor], operation: dist.ReduceOp.RedOpType) -> list[Tensor]:
    """The tensors reduced in one collective, in the widest of their dtypes, each returned in its own."""
    flat = torch.cat([x.flatten() for x in tensors])
    dist.all_reduce(flat, op=operation)
    parts = flat.split([x.numel() for x in tensors])
    return [part.view_as(x).to(x.dtype) for part, x in zip(parts, tensors, strict=True)]
