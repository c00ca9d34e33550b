"""What a head uses of its attention, and where the rest goes, where the baseline has its attention sink."""

from collections.abc import Mapping, Sequence

import numpy as np

from sinks.report.ablation import Run
from sinks.report.outcomes import Comparison
from sinks.report.run_statistics import FIRST_TOKEN_MASS_BY_HEAD, statistics_with
from sinks.report.spread import Spread
from sinks.report.tables import Table, with_half_range

USED = "effective_weight"
ROUTES = {
    USED: "used (effective weight)",
    "lost_first": "lost at the first token",
    "lost_own": "lost at the own token",
    "lost_other": "lost at other tokens",
    "missing": "mass without a value (learned sink)",
    "lost_learned": "lost at a learned value",
    "closed": "closed by the gate",
}
VISIBLE = 5e-4  # a smaller route is left out
NOTE = (
    "The numbers behind the picture above: mean and half range over seeds. Where a half range is large, seeds take "
    "different routes."
)


def routes(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Spread]:
    """Name -> each route over seeds, in the layer and head of the largest first-token mass of the baseline's run of the
    same seed; empty if no run has them there."""
    places = {run.seed: place for run in baseline if (place := _strongest(run)) is not None}
    found: dict[str, list[float]] = {}
    for run in runs:
        statistics, place = statistics_with(run, f"attention/{USED}"), places.get(run.seed)
        if statistics is None or place is None:
            continue
        arrays = {name: f"attention/{name}" for name in ROUTES}
        measured = {name: statistics.by_layer(at) for name, at in arrays.items() if at in statistics.arrays}
        shape = measured[USED].shape[1:]
        if place[0] >= shape[0] or place[1] >= shape[1] or not np.isfinite(measured[USED][-1][place]):
            continue
        for name, array in measured.items():
            if np.isfinite(value := float(array[-1][place])):
                found.setdefault(name, []).append(value)
    return {name: spread for name, values in found.items() if (spread := Spread.of(values)) is not None}


def of_variants(comparison: Comparison) -> dict[str, dict[str, Spread]]:
    """Variant -> its routes, of those that have them; empty without a baseline."""
    if comparison.baseline is None:
        return {}
    reference = comparison.baseline.variant.runs
    found = {result.variant.name: routes(result.variant.shown, reference) for result in comparison.results}
    return {name: each for name, each in found.items() if each}


def visible(found: Mapping[str, Mapping[str, Spread]]) -> list[str]:
    """The routes that some variant takes."""
    return [name for name in ROUTES if any(abs(each[name].mean) >= VISIBLE for each in found.values() if name in each)]


def table(comparison: Comparison) -> Table | None:
    """A row for each variant, a column for each route that one of them takes; None without routes."""
    found = of_variants(comparison)
    shown = visible(found)
    rows = [
        [result.variant.label, *(with_half_range(found[result.variant.name].get(name), 3) for name in shown)]
        for result in comparison.results
        if result.variant.name in found
    ]
    return Table(["variant", *(ROUTES[name] for name in shown)], rows) if rows else None


def _strongest(run: Run) -> tuple[int, int] | None:
    """Layer and head with the largest first-token mass at the last step."""
    statistics = statistics_with(run, FIRST_TOKEN_MASS_BY_HEAD)
    if statistics is None:
        return None
    mass = np.nan_to_num(statistics.by_layer(FIRST_TOKEN_MASS_BY_HEAD)[-1], nan=-1.0)
    layer, head = np.unravel_index(int(mass.argmax()), mass.shape)
    return int(layer), int(head)
