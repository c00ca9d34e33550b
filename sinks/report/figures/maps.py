"""Maps: first-token mass over layers and heads, and the attention of one head over a sequence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sinks.errors import UserError
from sinks.record import Statistics
from sinks.report.ablation import Variant
from sinks.report.figures.style import INK, WIDTH, Drawing, name_of, new_figure, styled
from sinks.report.outcomes import Comparison
from sinks.report.run_statistics import FIRST_TOKEN_MASS_BY_HEAD, statistics_with

MAP_COLORS = "Blues"


def draw_map(axis: Axes, values: np.ndarray, numbers: bool) -> Any:
    """First-token mass [layers, heads]; layer 0 at the bottom; blank where a layer has no attention."""
    image = axis.imshow(values, cmap=MAP_COLORS, vmin=0, vmax=1, origin="lower", aspect="auto")
    axis.grid(False)
    axis.spines[:].set(visible=True, color="#c8c8c8")
    axis.tick_params(length=0)
    layers, heads = values.shape
    axis.set_yticks(range(layers) if layers <= 12 else range(0, layers, max(1, layers // 8)))
    axis.set_xticks(range(heads) if heads <= 12 else range(0, heads, max(1, heads // 6)))
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if value > 0.55 else INK
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    return image


def _color_bar(figure: Figure, image: Any, label: str, **options: Any) -> None:
    bar = figure.colorbar(image, **options)
    bar.outline.set_visible(False)
    bar.set_label(label)


@styled
def first_token_maps(comparison: Comparison) -> Drawing | None:
    """First-token mass of every layer and head at the last step: one panel per variant, on one scale from 0 to 1.

    Heads of different seeds do not correspond, so seeds are shown side by side if there is room (up to four heads);
    otherwise the first seed represents the variant.
    """
    panels: list[tuple[Variant, list[tuple[int | None, np.ndarray]]]] = []
    for variant in comparison.ablation.variants:
        maps = [
            (run.seed, statistics.by_layer(FIRST_TOKEN_MASS_BY_HEAD)[-1])
            for run in variant.shown
            if (statistics := statistics_with(run, FIRST_TOKEN_MASS_BY_HEAD))
        ]
        if maps:
            room = max(1, 6 // maps[0][1].shape[1])
            panels.append((variant, maps[:room]))
    if not panels:
        return None
    layers = max(values.shape[0] for _, maps in panels for _, values in maps)
    heads = max(values.shape[1] for _, maps in panels for _, values in maps)
    columns = min(len(panels), 5 if heads * len(panels[0][1]) <= 4 else 4)
    rows = -(-len(panels) // columns)
    cell = 0.42 if layers <= 4 else max(0.07, 2.4 / layers)
    figure, axes = new_figure(
        0.5 + rows * (0.75 + cell * layers), nrows=rows, ncols=columns, squeeze=False, sharey=True
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    image: Any = None
    for axis, (variant, maps) in zip(axes.flat, panels, strict=False):
        values = np.concatenate([values for _, values in maps], axis=1)
        image = draw_map(axis, values, numbers=layers <= 12 and values.shape[1] <= 6)
        axis.set_title(name_of(variant, 90 // columns), fontsize=9.5)
        per_seed = maps[0][1].shape[1]
        for n in range(1, len(maps)):
            axis.axvline(n * per_seed - 0.5, color="white", linewidth=4)
        if len(maps) > 1:
            ticks = [n * per_seed + (per_seed - 1) / 2 for n in range(len(maps))]
            axis.set_xticks(ticks, ["unseeded" if seed is None else f"seed {seed}" for seed, _ in maps], fontsize=8)
        else:
            axis.set_xlabel("head", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    _color_bar(figure, image, "first-token mass", ax=axes, fraction=0.025, pad=0.01, aspect=18)
    return figure


@styled
def first_token_map(statistics: Statistics, index: int = -1) -> Figure:
    """First-token mass [layers, heads] of one run at one logged step, as in the notebook.

    Args:
        statistics: of the validation or training stage.
        index: position on the step axis, -1 for the last.
    """
    values = statistics.by_layer(FIRST_TOKEN_MASS_BY_HEAD)[index]
    layers, heads = values.shape
    figure, axes = new_figure(min(6.0, 1.1 + 0.55 * layers))
    figure.set_figwidth(min(WIDTH, 2.8 + 0.9 * heads))
    image = draw_map(axes[0], values, numbers=layers <= 12 and heads <= 12)
    axes[0].set_xlabel("head")
    axes[0].set_ylabel("layer")
    axes[0].set_title(f"step {int(statistics.steps[index]):,}")
    _color_bar(figure, image, "first-token mass", ax=axes[0], fraction=0.08, pad=0.03)
    return figure


@styled
def attention_map_figure(weights: np.ndarray, labels: Sequence[str] | None = None, title: str = "") -> Figure:
    """Attention weights of one head over one sequence.

    Args:
        weights: [T, T], row = query, column = key; rows sum to at most 1.
        labels: the text of each token.
        title: heading.
    """
    weights = np.asarray(weights, dtype=np.float64)
    length = len(weights)
    if weights.shape != (length, length) or (labels is not None and len(labels) != length):
        raise UserError(f"weights are {weights.shape} and labels {len(labels or [])}: give [T, T] weights and T labels")
    future = np.triu(np.ones_like(weights, dtype=bool), 1)
    figure, axes = new_figure(min(8.0, 1.3 + max(2.4, 0.19 * length)))
    figure.set_figwidth(min(WIDTH, figure.get_figheight() + 0.9))
    axis = axes[0]
    image = axis.imshow(
        np.ma.masked_array(weights, future), cmap=MAP_COLORS, norm=Normalize(0, 1), interpolation="nearest"
    )
    axis.grid(False)
    axis.set_xlabel("key")
    axis.set_ylabel("query")
    axis.set_title(title)
    if labels is not None and length <= 80:
        size = 9 if length <= 32 else 6.5
        axis.set_xticks(range(length), labels, fontsize=size, family="monospace")
        axis.set_yticks(range(length), labels, fontsize=size, family="monospace")
        axis.tick_params(length=0)
    _color_bar(figure, image, "attention weight", ax=axis, fraction=0.045, pad=0.02)
    return figure
