"""When each head's attention sink is born: the first validation at which its first-token mass is above a threshold."""

import math
from collections.abc import Sequence

import numpy as np

from sinks.report.ablation import Ablation, Run
from sinks.report.run_statistics import FIRST_TOKEN_MASS_BY_HEAD, statistics_with
from sinks.report.tables import NONE, Table

THRESHOLD = 0.3
NOTE = (
    f"The first validation at which the head's mean attention to the first token is above {THRESHOLD}; one that "
    "never is counts as born after the end. Median over seeds, and earliest to latest; a median between a born and an "
    "unborn one is not defined. Heads that never have a sink are left out."
)


def births(run: Run) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """Names of the attention sites [L], steps of birth [L, H], infinite where a sink never was, and whether it is
    there at the end [L, H]; None without statistics of first-token mass."""
    statistics = statistics_with(run, FIRST_TOKEN_MASS_BY_HEAD)
    if statistics is None:
        return None
    above = statistics.arrays[FIRST_TOKEN_MASS_BY_HEAD] > THRESHOLD  # a NaN is not
    steps = np.where(above, statistics.steps[:, None, None].astype(np.float64), np.inf)
    return statistics.sites["attention"], steps.min(0), above[-1]


def median(values: Sequence[float]) -> float | None:
    """The middle of values some of which may be infinite; None between a finite and an infinite one."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if math.isinf(low) or math.isinf(high):
        return low if low == high else None
    return (low + high) / 2


def table(ablation: Ablation) -> Table | None:
    """A row for every variant and head that had a sink in some seed; None if there is none."""
    rows = []
    for variant in ablation.variants:
        found = [each for run in variant.runs if (each := births(run)) is not None]
        if not found:
            continue
        born, there = np.stack([each[1] for each in found]), np.stack([each[2] for each in found])
        for layer, head in np.argwhere(np.isfinite(born).any(0)).tolist():
            steps = born[:, layer, head].tolist()
            middle, count = median(steps), len(steps)
            rows.append(
                [
                    variant.label,
                    f"{found[0][0][layer]}, head {head}",
                    f"{sum(map(math.isfinite, steps))} of {count}",
                    NONE if middle is None else _step(middle),
                    _step(min(steps)) if min(steps) == max(steps) else f"{_step(min(steps))} to {_step(max(steps))}",
                    f"{int(there[:, layer, head].sum())} of {count}",
                ]
            )
    headings = ["variant", "head", "seeds with a sink", "born at step, median", "range", "there at the end"]
    return Table(headings, rows, frozenset({0, 1})) if rows else None


def _step(step: float) -> str:
    return "never" if math.isinf(step) else f"{step:g}"
