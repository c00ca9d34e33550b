"""What the paired loss differences of an ablation can tell: noise, what is too small to see, each row's call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sinks.stats.paired import ALPHA, Paired, holm, pooled_sd, smallest_effect

LossCall = Literal["higher", "lower", "cannot tell", "no effect", "one seed"]
# Rows with at least so many seeds are tested, all together.
TESTED_FROM = 6


@dataclass(frozen=True)
class Noise:
    """How far a paired loss difference varies over seeds.

    Args:
        sd: standard deviation, pooled over variants.
        degrees: of freedom.
        rows: variants that it comes from.
    """

    sd: float
    degrees: int
    rows: int


@dataclass(frozen=True)
class LossResult:
    """What the losses of a variant and of the baseline's runs of the same seeds tell.

    Args:
        difference: variant minus baseline.
        visible: the smallest effect that so many seeds find (power 80 %, two-sided 5 %, which rows that are tested
            share among them); None for one seed.
        call: what can be said about the sign.
        p: adjusted over the rows that are tested; None for a row that is not.
    """

    difference: Paired
    visible: float | None
    call: LossCall
    p: float | None = None


def judge_losses(differences: Mapping[str, Paired]) -> tuple[Noise | None, dict[str, LossResult]]:
    """The noise of an ablation, and the result of each variant.

    What a row can see follows from the larger of its own standard deviation and the pooled one: that of a few seeds is
    small by chance too often. With `TESTED_FROM` seeds a difference counts if its p value, adjusted by Holm's method
    over all such rows, is below 5 %. With fewer it counts only if it is one that so many seeds can see, and its
    interval excludes zero. A row whose losses are the baseline's to the last digit has no effect, and is in no family.

    Args:
        differences: by variant; only of variants that have one.
    """
    changed = {name: each for name, each in differences.items() if not _same(each)}
    pooled = pooled_sd(list(changed.values()))
    tested = [name for name, each in changed.items() if each.n >= TESTED_FROM]
    p_values = dict(zip(tested, holm([changed[name].p or 0.0 for name in tested]), strict=True))
    found = {}
    for name, each in differences.items():
        visible = None
        if name in changed and each.sd is not None and pooled is not None:
            # Holm's level for the smallest p value: at 5 % a row could fail to tell a difference above what it sees.
            alpha = ALPHA / len(tested) if name in p_values else ALPHA
            visible = smallest_effect(max(each.sd, pooled[0]), each.n, alpha=alpha)
        found[name] = LossResult(each, visible, _call(each, visible, p_values.get(name)), p_values.get(name))
    rows = sum(each.n > 1 for each in changed.values())
    return (Noise(*pooled, rows) if pooled else None), found


def _same(each: Paired) -> bool:
    return each.mean == 0 and not each.sd


def _call(each: Paired, visible: float | None, p: float | None) -> LossCall:
    if _same(each):
        return "no effect"
    if visible is None or each.low is None or each.high is None:
        return "one seed"
    excluded = not each.low <= 0 <= each.high
    counts = excluded and abs(each.mean) >= visible if p is None else p < ALPHA
    if not counts:
        return "cannot tell"
    return "higher" if each.mean > 0 else "lower"
