"""Measures over training, for every variant of an ablation or for one run."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sinks.record import RunFolder
from sinks.record.folder import NotRecorded
from sinks.report.ablation import Run, Variant
from sinks.report.figures.style import (
    INK,
    LEGEND,
    SIDES,
    Drawing,
    Look,
    looks,
    name_of,
    new_figure,
    scale_values,
    styled,
)
from sinks.report.outcomes import Comparison

FIRST_TOKEN_MASS = "validation/attention/first_token_mass_max_head"
SINK_SCORE = "validation/residual/sink_score"
# Letters that fit into the legends of a row of panels, and those that a line's sample takes.
LETTERS, HANDLE = 120, 8


def _series(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        return run.folder.series(key)
    except NotRecorded:
        return np.empty(0, dtype=np.int64), np.empty(0)


def _over_seeds(runs: Sequence[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] that every run logged, and values [runs, S]; runs without a logged number are skipped."""
    series = [pair for run in runs if np.isfinite((pair := _series(run, key))[1]).any()]
    if not series:
        return np.empty(0, dtype=np.int64), np.empty((0, 0))
    # A resumed run may have logged a step twice; the later line counts.
    by_step = [dict(zip(steps.tolist(), values.tolist(), strict=True)) for steps, values in series]
    common = sorted(set.intersection(*(set(values) for values in by_step)))
    return np.asarray(common), np.asarray([[values[step] for step in common] for values in by_step])


@styled
def over_training(comparison: Comparison, key: str, label: str, unit_interval: bool = False) -> Drawing | None:
    """A key of metrics.jsonl over training: one panel per side, each with the baseline; mean lines, min-max bands."""
    ablation = comparison.ablation
    look = looks(ablation)
    curves = {v.name: curve for v in ablation.variants if len((curve := _over_seeds(v.shown, key))[0])}
    drawn = [variant for variant in ablation.variants if variant.name in curves]
    if not drawn:
        return None
    panels: list[tuple[str, list[Variant]]] = []
    for side, name in SIDES:
        members = [v for v in drawn if v.side == side and v is not ablation.baseline]
        if members:
            panels.append((name, members))
    if not panels:
        panels = [("", [])]
    columns = 3 if len(panels) == 1 else 1
    width = LETTERS // max(3, len(panels)) - HANDLE
    rows = max(sum(1 + name_of(v, width).count("\n") for v in members) // columns + 1 for _, members in panels)
    figure, axes = new_figure(2.7 + 0.2 * rows, ncols=len(panels), sharey=True, sharex=True)
    for axis, (name, members) in zip(axes, panels, strict=True):
        both = [v for v in drawn if v is ablation.baseline] + members
        for variant in both:
            entry = name_of(variant, width)
            _draw_curve(figure, axis, variant, entry, *curves[variant.name], look[variant.name])
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.margins(x=0.01)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True))
        axis.legend(loc="upper left", bbox_to_anchor=(-0.03, -0.2), ncols=columns, **LEGEND)
    scale_values(axes[0], np.concatenate([values.ravel() for _, values in curves.values()]), unit_interval)
    axes[0].set_ylabel(label)
    return figure


def _draw_curve(
    figure: Drawing, axis: Axes, variant: Variant, entry: str, steps: np.ndarray, values: np.ndarray, look: Look
) -> None:
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    if len(values) > 1:
        band = axis.fill_between(steps, low, high, color=look.color, alpha=0.15, linewidth=0)
        figure.belongs(variant.name, band)
    ranges = [
        f" [{a:.3g}, {b:.3g}], {len(values)} runs" if len(values) > 1 else "" for a, b in zip(low, high, strict=True)
    ]
    texts = [f"{variant.short}, step {s:,}: {m:.3g}{r}" for s, m, r in zip(steps.tolist(), mean, ranges, strict=True)]
    figure.points(axis, variant.name, np.stack([steps, mean], 1), texts)
    (line,) = axis.plot(
        steps,
        mean,
        color=look.color,
        linestyle=look.dash,
        linewidth=3.2 if look.baseline else 1.7,
        marker="o" if len(steps) == 1 else None,
        label=entry,
    )
    figure.belongs(variant.name, line)


def first_token_mass_over_training(comparison: Comparison) -> Drawing | None:
    """First-token mass in the strongest head over training; None if no run logged it."""
    return over_training(comparison, FIRST_TOKEN_MASS, "first-token mass,\nstrongest head", unit_interval=True)


def sink_score_over_training(comparison: Comparison) -> Drawing | None:
    """Residual sink score R over training; None if no run logged it."""
    return over_training(comparison, SINK_SCORE, "residual sink score R")


@styled
def sink_curves(run: RunFolder, step: int | None = None, stage: str = "validation") -> Figure:
    """First-token mass and R of one run over training, side by side.

    Args:
        run: its folder.
        step: marked by a line, if given.
        stage: "validation" or "train".
    """
    figure, axes = new_figure(2.7, ncols=2)
    for axis, key, label, color, unit_interval in (
        (axes[0], FIRST_TOKEN_MASS, "first-token mass, strongest head", "#0072B2", True),
        (axes[1], SINK_SCORE, "residual sink score R", "#D55E00", False),
    ):
        steps, values = run.series(key.replace("validation", stage))
        axis.plot(steps, values, color=color, linewidth=2, marker="o", markersize=3)
        if step is not None:
            axis.axvline(step, color=INK, linewidth=1)
        axis.set_title(label)
        axis.set_xlabel("step")
        axis.margins(x=0.02)
        scale_values(axis, values, unit_interval)
    return figure
