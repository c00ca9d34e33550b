"""Factors that every combination of was run: the effect of each, and whether one replaces another."""

import itertools
from collections.abc import Mapping

from sinks.report.ablation import Ablation, Run
from sinks.report.outcomes import LOSS, SAME
from sinks.report.tables import MEASURES, NONE, Column, Table, with_interval
from sinks.stats.paired import Paired

NOTE = (
    "An effect is the measure with a factor minus that without it, mean over the combinations of the others. An "
    "interaction is the effect of one factor where the other is there, minus that where it is not: of two that replace "
    "each other, each has an effect alone and the interaction undoes one of them. Paired by seed; 95 % intervals."
)
COLUMNS = [Column(LOSS, "validation loss", "loss", 4), *MEASURES]
Combination = frozenset[str]


def table(ablation: Ablation) -> Table | None:
    """A row for each factor and each pair; None unless the ablation file names factors and a seed has every
    combination, of the same steps and data."""
    factors = ablation.factors
    runs = _by_seed(ablation)
    whole = {seed: found for seed, found in runs.items() if len(found) == 2 ** len(factors) and _alike(found)}
    if not factors or not whole:
        return None
    rows = []
    for number in (1, 2):
        for of in itertools.combinations(factors, number):
            cells = [with_interval(_effect(whole, set(of), column.key), column.digits) for column in COLUMNS]
            rows.append([" x ".join(factors[name] for name in of), *(cell or NONE for cell in cells)])
    heading = f"effect, {len(whole)} seed{'s' * (len(whole) != 1)}"
    return Table([heading, *(column.heading for column in COLUMNS)], rows)


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


def _effect(whole: Mapping[int, Mapping[Combination, Run]], of: set[str], key: str) -> Paired | None:
    """Of a factor, or of the interaction of two: over the seeds in which every combination has the measure."""
    effects = []
    for combinations in whole.values():
        values = {has: run.value(key) for has, run in combinations.items()}
        if all(value is not None for value in values.values()):
            signed = [(-1) ** len(of - has) * value for has, value in values.items() if value is not None]
            effects.append(sum(signed) * 2 ** len(of) / len(signed))
    return Paired.of(effects)
