"""What a head uses of its attention, and where the rest goes: variants side by side."""

from collections.abc import Sequence

import numpy as np

from sinks.report.ablation import Run
from sinks.report.figures.maps import FIRST_TOKEN_MASS_BY_HEAD
from sinks.report.figures.style import LEGEND, Drawing, Mark, name_of, new_figure, statistics_with, styled
from sinks.report.outcomes import Comparison

EFFECTIVE_WEIGHT = "attention/effective_weight"
# Array, words, color; in the order of the bars.
ROUTES = [
    ("effective_weight", "used (effective weight)", "#222222"),
    ("lost_first", "lost at the first token", "#0072B2"),
    ("lost_own", "lost at the own token", "#56B4E9"),
    ("lost_other", "lost at other tokens", "#B8D4E8"),
    ("missing", "mass without a value (learned sink)", "#D55E00"),
    ("lost_learned", "lost at a learned value", "#F2B38C"),
    ("closed", "closed by the gate", "#00805E"),
]


def _strongest(run: Run) -> tuple[int, int] | None:
    """Layer and head with the largest first-token mass at the last step."""
    statistics = statistics_with(run, FIRST_TOKEN_MASS_BY_HEAD)
    if statistics is None:
        return None
    mass = np.nan_to_num(statistics.by_layer(FIRST_TOKEN_MASS_BY_HEAD)[-1], nan=-1.0)
    layer, head = np.unravel_index(int(mass.argmax()), mass.shape)
    return int(layer), int(head)


def mean_routes(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, float] | None:
    """Means over seeds of each route, in the layer and head of the largest first-token mass of the baseline's run of
    the same seed; None if no run has them there."""
    places = {run.seed: place for run in baseline if (place := _strongest(run)) is not None}
    found: dict[str, list[float]] = {}
    for run in runs:
        statistics, place = statistics_with(run, EFFECTIVE_WEIGHT), places.get(run.seed)
        if statistics is None or place is None:
            continue
        shape = statistics.by_layer(EFFECTIVE_WEIGHT).shape[1:]
        if place[0] >= shape[0] or place[1] >= shape[1]:
            continue
        for name, *_ in ROUTES:
            at = f"attention/{name}"
            value = float(statistics.by_layer(at)[-1][place]) if at in statistics.arrays else 0.0
            found.setdefault(name, []).append(value if np.isfinite(value) or name == "effective_weight" else 0.0)
    return {name: float(np.mean(values)) for name, values in found.items()} if found else None


@styled
def routes(comparison: Comparison) -> Drawing | None:
    """A bar per variant: effective weight and its routes, at the head where the baseline's sink of that seed is."""
    if comparison.baseline is None:
        return None
    reference = comparison.baseline.variant.runs
    bars = [
        (result.variant, values)
        for result in comparison.results
        if (values := mean_routes(result.variant.shown, reference)) is not None
        and np.isfinite(values["effective_weight"])
    ]
    if not bars:
        return None
    figure, axes = new_figure(1.3 + 0.34 * len(bars))
    axis, places_of_bars = axes[0], np.arange(len(bars))[::-1]
    above, below = np.zeros(len(bars)), np.zeros(len(bars))
    for name, words, color in ROUTES:
        widths = np.array([values[name] for _, values in bars])
        if np.abs(widths).max() < 5e-4:
            continue
        starts = np.where(widths >= 0, above, below)
        parts = axis.barh(places_of_bars, widths, left=starts, color=color, height=0.72, label=words)
        for (variant, _), part, width in zip(bars, parts, widths, strict=True):
            figure.belongs(variant.name, part)
            box = part.get_bbox().extents
            figure.marks.append(Mark(axis, tuple(box), variant.name, f"{variant.short}, {words}: {width:.3f}"))
        above, below = above + widths.clip(min=0), below + widths.clip(max=0)
    axis.axvline(1, color="white", linewidth=1.2)
    axis.axvline(1, color="#222222", linewidth=0.8, linestyle=(0, (4, 2)))
    axis.set_yticks(places_of_bars, [name_of(variant, 40) for variant, _ in bars])
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("fraction of a query's attention; beyond 1: what values above the median add")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, **LEGEND)
    return figure
