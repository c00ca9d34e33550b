"""The double dissociation: attention sink against residual sink, one point per run."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from sinks.report.figures.style import FAINT, INK, Drawing, Look, looks, name_of, new_figure, styled
from sinks.report.outcomes import ATTENTION, RESIDUAL, Comparison


@styled
def double_dissociation(comparison: Comparison) -> Drawing | None:
    """Final first-token mass against R: one point per run, one label per variant."""
    ablation = comparison.ablation
    look = looks(ablation)
    points: dict[str, np.ndarray] = {}
    seeds: dict[str, list[str]] = {}
    for variant in ablation.variants:
        known = [
            (run.seed_name, x, y)
            for run in variant.runs
            if (x := run.value(ATTENTION)) is not None and (y := run.value(RESIDUAL)) is not None
        ]
        if known:
            points[variant.name] = np.asarray([(x, y) for _, x, y in known])
            seeds[variant.name] = [seed for seed, _, _ in known]
    drawn = [variant for variant in ablation.variants if variant.name in points]
    if not drawn:
        return None
    figure, axes = new_figure(4.9)
    axis = axes[0]
    for variant in drawn:
        style = look[variant.name]
        xy = points[variant.name]
        dots = axis.scatter(
            xy[:, 0],
            xy[:, 1],
            s=150 if style.baseline else 52,
            marker=style.marker,
            color=style.color,
            alpha=0.9,
            edgecolor="white",
            linewidth=0.7,
            zorder=4 if style.baseline else 3,
        )
        figure.belongs(variant.name, dots)
        texts = [
            f"{variant.short}, seed {seed}: first-token mass {x:.3f}, R {y:.2f}"
            for seed, (x, y) in zip(seeds[variant.name], xy, strict=True)
        ]
        figure.points(axis, variant.name, xy, texts)
    everything = np.concatenate(list(points.values()))
    axis.set_xlim(-0.04, 1.04)
    if everything[:, 1].max() / max(everything[:, 1].min(), 1e-9) > 50:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, everything[:, 1].max() * 1.13)
    if ablation.baseline is not None and ablation.baseline.name in points:
        x, y = points[ablation.baseline.name].mean(0)
        axis.axvline(x, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axis.axhline(y, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        small = {"color": FAINT, "fontsize": 8.5, "fontstyle": "italic", "textcoords": "offset points"}
        axis.annotate("\u2190 attention sink smaller", (x / 2, y), (0, 4), ha="center", va="bottom", **small)
        low = axis.transAxes.inverted().transform(axis.transData.transform((x, 0)))[0]
        axis.annotate(
            "\u2190 residual sink smaller", (low, 0.02), (-4, 0), "axes fraction", ha="right", rotation=90, **small
        )
    axis.set_xlabel("first-token mass, strongest head  (attention sink)")
    axis.set_ylabel("R  (residual sink)")
    labels = _place_labels(figure, axis, [(name_of(v, 44), points[v.name], look[v.name]) for v in drawn])
    for variant, label in zip(drawn, labels, strict=True):
        figure.belongs(variant.name, label)
    return figure


def _darker(color: str) -> str:
    """A line color made dark enough for small text on white."""
    return to_hex(0.6 * np.asarray(to_rgb(color)) + 0.4 * np.asarray(to_rgb(INK)))


def _candidates() -> Iterator[tuple[float, float]]:
    """Offsets in points around a variant's points, nearest first."""
    for distance in (9, 14, 20, 28, 40, 56, 74, 95, 120):
        for angle in (0, 180, 45, -45, 135, -135, 90, -90, 20, -20, 160, -160, 70, -70, 110, -110):
            yield distance * np.cos(np.radians(angle)), distance * np.sin(np.radians(angle))


def _alignment(dx: float, dy: float) -> tuple[str, str]:
    """The corner or edge of a label that faces its point."""
    horizontal = "left" if dx > 1 else "right" if dx < -1 else "center"
    return horizontal, "center" if abs(dy) < 2 else "bottom" if dy > 0 else "top"


def _place_labels(figure: Figure, axis: Axes, labels: list[tuple[str, np.ndarray, Look]]) -> list[Annotation]:
    """Label each variant at one of its points, without covering points or other labels; the labels are returned."""
    placed = []
    figure.draw_without_rendering()
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    frame = axis.get_window_extent(renderer)
    pixels = np.concatenate([axis.transData.transform(xy) for _, xy, _ in labels])
    taken = [text.get_window_extent(renderer) for text in axis.texts]
    shift = {"left": 0.0, "bottom": 0.0, "center": -0.5, "right": -1.0, "top": -1.0}
    for text, xy, look in labels:
        style: dict[str, Any] = {
            "fontsize": 9,
            "fontweight": "bold" if look.baseline else "normal",
            "color": _darker(look.color),
            "path_effects": [withStroke(linewidth=2.5, foreground="white")],
            "zorder": 5,
        }
        probe = axis.text(0, 0, text, **style)
        size = probe.get_window_extent(renderer)
        probe.remove()
        best = np.inf
        for nearness, (dx, dy) in enumerate(_candidates()):
            horizontal, vertical = _alignment(dx, dy)
            for anchor in [*xy, xy.mean(0)]:
                x, y = map(float, axis.transData.transform(anchor))
                x += dx * figure.dpi / 72 + shift[horizontal] * size.width
                y += dy * figure.dpi / 72 + shift[vertical] * size.height
                box = Bbox.from_bounds(x, y, size.width, size.height).padded(2)
                outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
                hits = np.sum((pixels > np.subtract(box.min, 5)).all(1) & (pixels < np.add(box.max, 5)).all(1))
                covered = sum(box.overlaps(other) for other in taken)
                cost = nearness * 0.2 + 30 * hits + 90 * covered + 200 * outside
                if cost < best:
                    best, place = cost, (anchor, (dx, dy), box)
        anchor, offset, box = place
        horizontal, vertical = _alignment(*offset)
        corner = (-shift[horizontal], -shift[vertical])
        line = {"arrowstyle": "-", "color": look.color, "linewidth": 0.7, "shrinkB": 3, "relpos": corner}
        placed.append(
            axis.annotate(
                text,
                anchor,
                offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                multialignment=horizontal,
                arrowprops=line if np.hypot(*offset) > 20 else None,
                **style,
            )
        )
        taken.append(box)
    return placed
