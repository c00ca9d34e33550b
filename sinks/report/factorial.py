"""Factors that every combination of was run: the effect of each, and whether one replaces another."""

import itertools
from collections.abc import Mapping

from sinks.report.ablation import Ablation, Run
from sinks.report.loss import TESTED_FROM
from sinks.report.outcomes import ATTENTION, LOSS, RESIDUAL, SAME
from sinks.report.outcomes import MEASURES as NAMED_MEASURES
from sinks.report.tables import MEASURES, NONE, Column, Table, with_interval
from sinks.stats.paired import ALPHA, Paired, holm

NOTE = (
    "An effect is the measure with a factor minus that without it, mean over the combinations of the others. An "
    "interaction is the effect of one factor where the other is there, minus that where it is not: of two that replace "
    "each other, each has an effect alone and the interaction undoes one of them. Paired by seed; 95 % intervals."
)
COLUMNS = [Column(LOSS, "validation loss", "loss", 4), *MEASURES]
OPENING = (ATTENTION, RESIDUAL, LOSS)  # measures whose interactions the report opens with
Combination = frozenset[str]
Whole = Mapping[int, Mapping[Combination, Run]]


def table(ablation: Ablation) -> Table | None:
    """A row for each factor and each pair; None unless the ablation file names factors and a seed has every
    combination, of the same steps and data."""
    factors, whole = ablation.factors, _whole(ablation)
    if not whole:
        return None
    rows = []
    for number in (1, 2):
        for of in itertools.combinations(factors, number):
            cells = [with_interval(_effect(whole, set(of), column.key), column.digits) for column in COLUMNS]
            rows.append([_named(ablation, of), *(cell or NONE for cell in cells)])
    heading = f"effect, {len(whole)} seed{'s' * (len(whole) != 1)}"
    return Table([heading, *(column.heading for column in COLUMNS)], rows)


def sentence(ablation: Ablation) -> str:
    """Which effects of two factors do not add up, by the paired t test, adjusted by Holm's method over all pairs and
    measures of `OPENING`; empty unless there is a table."""
    whole = _whole(ablation)
    if len(whole) < TESTED_FROM:
        return f"{TESTED_FROM} seeds or more tell whether effects of two factors add up." if whole else ""
    found = {
        (key, pair): effect
        for key in OPENING
        for pair in itertools.combinations(ablation.factors, 2)
        if (effect := _effect(whole, set(pair), key)) is not None and effect.p is not None
    }
    adjusted = holm([effect.p or 0.0 for effect in found.values()])
    told = {which: effect for (which, effect), p in zip(found.items(), adjusted, strict=True) if p < ALPHA}
    digits = {column.key: column.digits for column in COLUMNS}
    parts = []
    for key in OPENING:
        pairs = [
            f"{_named(ablation, pair)} {with_interval(effect, digits[key])}"
            for (measure, pair), effect in told.items()
            if measure == key
        ]
        parts += [f"in {NAMED_MEASURES[key]}: {', '.join(pairs)}"] if pairs else []
    if not parts:
        return f"{len(whole)} seeds can tell no interaction of two factors."
    return f"Effects of two factors do not add up {'; '.join(parts)}."


def _named(ablation: Ablation, of: tuple[str, ...]) -> str:
    return " x ".join(ablation.factors[name] for name in of)


def _whole(ablation: Ablation) -> Whole:
    """Runs of the seeds that have every combination, of the same steps and data; empty without factors."""
    if not ablation.factors:
        return {}
    number = 2 ** len(ablation.factors)
    return {seed: found for seed, found in _by_seed(ablation).items() if len(found) == number and _alike(found)}


def _by_seed(ablation: Ablation) -> dict[int, dict[Combination, Run]]:
    found: dict[int, dict[Combination, Run]] = {}
    for variant in ablation.variants:
        if variant.has is None:
            continue
        for run in variant.runs:
            if run.seed is not None:
                found.setdefault(run.seed, {})[variant.has] = run
    return found


def _alike(combinations: Mapping[Combination, Run]) -> bool:
    """Whether runs are of the same steps and data, as those of `paired` must be."""
    return len({tuple(run.summary.get(key) for key in SAME) for run in combinations.values()}) == 1


def _effect(whole: Whole, of: set[str], key: str) -> Paired | None:
    """Of a factor, or of the interaction of two: over the seeds in which every combination has the measure."""
    effects = []
    for combinations in whole.values():
        values = {has: run.value(key) for has, run in combinations.items()}
        if all(value is not None for value in values.values()):
            signed = [(-1) ** len(of - has) * value for has, value in values.items() if value is not None]
            effects.append(sum(signed) * 2 ** len(of) / len(signed))
    return Paired.of(effects)
