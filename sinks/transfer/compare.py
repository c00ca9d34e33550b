"""Rank correlations between runs, token by token, beside the ceilings that the same rule gives for runs of one kind."""

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from sinks.transfer.token_values import TokenValues

# Differences that float32 does not tell from a constant.
RESOLUTION = 1e-6
BASELINE, ITSELF = "baseline", "itself"


def rank_correlation(x: Tensor, y: Tensor) -> float | None:
    """Spearman's coefficient of two series, with average ranks; None where either is constant or not finite."""
    for series in (x, y):
        if len(series) < 2 or not torch.isfinite(series).all():
            return None
        if float(series.max() - series.min()) <= RESOLUTION * float(series.abs().max()):
            return None
    return float(spearman_corrcoef(x.double(), y.double()))


def head_correlations(x: TokenValues, y: TokenValues, site: str, head: int, queries: str) -> dict[str, Any] | None:
    """Of one head of x with the same one of y, with the best one of its layer, and of the layers' means.

    The first two are absent where the layers differ in their number of heads; None where y has no such layer.
    """
    if site not in x.weight or site not in y.weight:
        return None
    mask = x.queries[queries]
    mine, theirs = x.weight[site][:, mask], y.weight[site][:, mask]
    found: dict[str, Any] = {"layer_mean": rank_correlation(mine.mean(0), theirs.mean(0))}
    if len(mine) != len(theirs):
        return found
    each = [rank_correlation(mine[head], other) for other in theirs]
    known = {index: value for index, value in enumerate(each) if value is not None}
    best = max(known, key=known.__getitem__, default=None)
    return found | {"same_head": each[head], "best_head": best, "best": None if best is None else known[best]}


def comparisons(runs: Mapping[str, Mapping[int, TokenValues]], baseline: str) -> Iterator[dict[str, Any]]:
    """Of each variant with the baseline of the same seed, and of each variant with itself over pairs of seeds.

    The head is always the one with the largest first-token mass of the baseline of the first seed of a pair, the norm
    the one with its largest R.

    Args:
        runs: values by variant and seed.
        baseline: the variant that the others are compared with.

    Yields:
        One entry per pair of runs, kind of queries and quantity. Pairs of one variant are taken in both orders.
    """
    for variant, by_seed in runs.items():
        pairs = list(permutations(sorted(by_seed), 2))
        tasks = [(ITSELF, by_seed[s], by_seed[other], s, other) for s, other in pairs]
        if variant != baseline:
            both = sorted(by_seed.keys() & runs[baseline].keys())
            tasks = [(BASELINE, runs[baseline][s], by_seed[s], s, s) for s in both] + tasks
        for against, x, y, seed, other in tasks:
            if seed not in runs[baseline]:
                continue
            reference = runs[baseline][seed]
            site, head = reference.strongest_head
            norm = reference.strongest_norm
            about = {"variant": variant, "against": against, "seed": seed, "other_seed": other}
            for queries in x.queries:
                found = head_correlations(x, y, site, head, queries)
                if found is not None:
                    yield about | {"quantity": "weight", "queries": queries, "site": site, "head": head} | found
                if norm is not None and norm in x.scale and norm in y.scale:
                    mask = x.queries[queries]
                    same = rank_correlation(x.scale[norm][mask], y.scale[norm][mask])
                    yield about | {"quantity": "scale", "queries": queries, "site": norm, "same_site": same}
