"""What a head uses of its attention, and where the rest goes: variants side by side."""

import numpy as np

from sinks.report.figures.style import LEGEND, Drawing, Mark, name_of, new_figure, styled
from sinks.report.outcomes import Comparison
from sinks.report.routes import ROUTES, USED, of_variants, visible

COLORS = {
    USED: "#222222",
    "lost_first": "#0072B2",
    "lost_own": "#56B4E9",
    "lost_other": "#B8D4E8",
    "missing": "#D55E00",
    "lost_learned": "#F2B38C",
    "closed": "#00805E",
}


@styled
def routes(comparison: Comparison) -> Drawing | None:
    """A bar per variant: effective weight and its routes, at the head where the baseline's sink of that seed is."""
    found = of_variants(comparison)
    variants = [result.variant for result in comparison.results if result.variant.name in found]
    if not variants:
        return None
    figure, axes = new_figure(1.3 + 0.34 * len(variants))
    axis, places_of_bars = axes[0], np.arange(len(variants))[::-1]
    above, below = np.zeros(len(variants)), np.zeros(len(variants))
    for name in visible(found):
        taken = [found[variant.name].get(name) for variant in variants]
        widths = np.array([spread.mean if spread else 0.0 for spread in taken])
        starts = np.where(widths >= 0, above, below)
        parts = axis.barh(places_of_bars, widths, left=starts, color=COLORS[name], height=0.72, label=ROUTES[name])
        for variant, part, width in zip(variants, parts, widths, strict=True):
            figure.belongs(variant.name, part)
            box = part.get_bbox().extents
            figure.marks.append(Mark(axis, tuple(box), variant.name, f"{variant.short}, {ROUTES[name]}: {width:.3f}"))
        above, below = above + widths.clip(min=0), below + widths.clip(max=0)
    axis.axvline(1, color="white", linewidth=1.2)
    axis.axvline(1, color="#222222", linewidth=0.8, linestyle=(0, (4, 2)))
    axis.set_yticks(places_of_bars, [name_of(variant, 40) for variant in variants])
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("fraction of a query's attention; beyond 1: what values above the median add")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, **LEGEND)
    return figure
