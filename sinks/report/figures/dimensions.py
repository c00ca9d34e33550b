"""Outlier dimensions of the residual stream."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator

from sinks.report.ablation import Run
from sinks.report.figures.style import FAINT, LEGEND, Drawing, name_of, new_figure, styled
from sinks.report.outcomes import RESIDUAL, Comparison
from sinks.report.run_statistics import statistics_with

MEAN_ABS = "residual/mean_abs"
SITE_FAMILIES = [
    ("attention norm input", ".attention.norm.input", "#0072B2", "-"),
    ("feed-forward norm input", ".feed_forward.norm.input", "#D55E00", (0, (5, 1.6))),
    ("final norm input", "head.norm.input", "#777777", (0, (1.4, 1.4))),
]
SAID = 12  # dimensions whose values a page says on hover
EMBEDDING_SITES = ("embedding", "blocks.0.attention.norm.input")


def _sorted_dimensions(runs: Sequence[Run], ending: str) -> np.ndarray | None:
    """Mean |h_j| [d_model] over its median, largest first: mean over the sites of a family, and over seeds."""
    curves = []
    for run in runs:
        statistics = statistics_with(run, MEAN_ABS)
        if statistics is None:
            continue
        sites = statistics.sites.get("residual", [])
        rows = [i for i, site in enumerate(sites) if site.endswith(ending) and site not in EMBEDDING_SITES]
        if rows:
            magnitude = statistics.arrays[MEAN_ABS][-1, rows].astype(np.float64)
            relative = magnitude / np.median(magnitude, axis=1, keepdims=True)
            curves.append(-np.sort(-relative, axis=1).mean(axis=0))
    return np.mean(curves, axis=0) if curves else None


@styled
def sorted_dimensions(comparison: Comparison) -> Drawing | None:
    """Magnitude by sorted residual dimension at the last step: the baseline and every residual-side variant."""
    sides, baseline = ("residual", "both"), comparison.baseline
    chosen = [r for r in comparison.results if r is baseline or (r.variant.side in sides and not r.no_effect)]
    if len(chosen) < 2:
        chosen = comparison.results
    curves = {
        r.variant.name: {
            name: curve
            for name, ending, *_ in SITE_FAMILIES
            if (curve := _sorted_dimensions(r.variant.shown, ending)) is not None
        }
        for r in chosen
    }
    drawn = [result for result in chosen if curves[result.variant.name]]
    if not drawn:
        return None
    columns = 3 if len(drawn) in (5, 6, 9) else min(len(drawn), 4)
    rows = -(-len(drawn) // columns)
    figure, axes = new_figure(0.7 + 2.1 * rows, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    reference = curves[baseline.variant.name] if baseline else {}
    for axis, result in zip(axes.flat, drawn, strict=False):
        variant = result.variant
        if baseline is not None and result is not baseline:
            for n, curve in enumerate(reference.values()):
                label = None if n else name_of(baseline.variant)
                axis.plot(np.arange(1, len(curve) + 1), curve, color="#c4c4c4", linewidth=1.4, label=label, zorder=1.5)
        for name, _, color, dash in SITE_FAMILIES:
            if name in curves[variant.name]:
                curve = curves[variant.name][name]
                order = np.arange(1, len(curve) + 1)
                (line,) = axis.plot(order, curve, color=color, linestyle=dash, linewidth=1.8, label=name)
                figure.belongs(variant.name, line)
                texts = [f"{variant.short}, {name}, dimension {n}: {v:.3g}" for n, v in enumerate(curve[:SAID], 1)]
                figure.points(axis, variant.name, np.stack([order, curve], 1)[:SAID], texts)
        axis.axhline(1, color=FAINT, linewidth=0.8, zorder=1)
        score = result.spreads.get(RESIDUAL)
        title = name_of(variant, 100 // columns)
        axis.set_title(title, fontsize=9.5)
        if score:
            axis.text(0.97, 0.93, f"R = {score.mean:.1f}", transform=axis.transAxes, ha="right", va="top", fontsize=10)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            scale.set_minor_formatter("")
    for column in range(columns):
        lowest = max(row for row in range(rows) if row * columns + column < len(drawn))
        axes[lowest, column].set_xlabel("dimension, largest first")
        axes[lowest, column].tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("mean |h| / median")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), **LEGEND)
    return figure
