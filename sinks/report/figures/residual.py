"""The residual stream by site, dimension and token: where a residual sink is, and what norms and gates make of it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from sinks.record import Statistics
from sinks.report.figures.dimensions import EMBEDDING_SITES, MEAN_ABS
from sinks.report.figures.style import LEGEND, WIDTH, new_figure, scale_values, styled

GAIN, GATE = "norm/gain", "norm/gate_by_channel"
# Array, what it is divided by its median for, heading, colors and their ends.
COLUMNS: list[tuple[str, bool, str, Normalize]] = [
    (MEAN_ABS, True, "mean |h| / median", LogNorm(0.3, 30)),
    (GAIN, False, "|gain| of the norm", LogNorm(0.1, 10)),
    (GATE, False, "gate of the norm, mean", Normalize(0, 1)),
]
COLORS = "cividis"
# What is drawn over the layers: array, its column if it has several, heading, whether it is a fraction.
MEASURES: dict[str, tuple[list[tuple[str, int | None, str]], bool]] = {
    "largest |h|": ([("residual/max_abs", 0, "token 0"), ("residual/max_abs", 1, "all other tokens")], False),
    "R of the residual stream": ([("residual/sink_score", None, "R")], False),
    "first-token mass": ([("attention/first_token_mass", None, "mean and range over heads")], True),
    "effective weight": ([("attention/effective_weight", None, "mean and range over heads")], False),
    "value norm ratio of the first token": (
        [("attention/value_norm_ratio", None, "mean and range over key-value heads")],
        False,
    ),
    "update over residual": (
        [("update/ratio", None, "all other tokens"), ("update/ratio_first_token", None, "token 0")],
        False,
    ),
    "energy in the largest dimension": ([("residual/energy_top_1", None, "fraction of a token's energy")], True),
}


def order_of_dimensions(statistics: Statistics, index: int = -1) -> np.ndarray:
    """Dimensions [D], the largest mean |h| over all sites but the bare embedding first (arXiv:2601.22966, Figure 2)."""
    sites = statistics.sites["residual"]
    rows = [i for i, site in enumerate(sites) if site not in EMBEDDING_SITES] or list(range(len(sites)))
    return np.argsort(-statistics.arrays[MEAN_ABS][index, rows].mean(axis=0), kind="stable")


@styled
def dimension_maps(panels: Mapping[str, Statistics], largest: int = 16, index: int = -1) -> Figure | None:
    """By site and dimension: mean |h| over the site's median, the norm's gain, and its gate, a row for each model.

    The dimensions are those that are largest, sorted as the paper's Figures 2 and 5 to 7 sort them; None if no model
    has any of it.

    Args:
        panels: statistics by the name of a model.
        largest: number of dimensions.
        index: position on the step axis, -1 for the last.
    """
    shown = {name: each for name, each in panels.items() if MEAN_ABS in each.arrays}
    if not shown:
        return None
    columns = [column for column in COLUMNS if any(column[0] in each.arrays for each in shown.values())]
    rows = max(len(each.sites["residual"]) for each in shown.values())
    figure, axes = new_figure(
        0.9 + len(shown) * (0.8 + min(3.2, 0.22 * rows)), nrows=len(shown), ncols=len(columns), squeeze=False
    )
    images: list[Any] = [None] * len(columns)
    for line, (name, statistics) in zip(axes, shown.items(), strict=True):
        chosen = order_of_dimensions(statistics, index)[:largest]
        sites = [_short(site) for site in statistics.sites["norm"]]
        for place, (axis, (array, relative, heading, norm)) in enumerate(zip(line, columns, strict=True)):
            if array not in statistics.arrays:
                axis.set_axis_off()
                axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
                continue
            values = np.abs(statistics.arrays[array][index].astype(np.float64))
            if relative:
                values = values / np.median(values, axis=1, keepdims=True)
            images[place] = axis.imshow(
                values[:, chosen], cmap=COLORS, norm=norm, origin="lower", aspect="auto", interpolation="nearest"
            )
            _name_cells(axis, [str(d) for d in chosen], sites if place == 0 else [])
            axis.set_title(heading, fontsize=9.5)
            if place == 0:
                axis.set_ylabel("\n".join(textwrap.wrap(name, 26)), fontsize=9.5, fontweight="bold")
    for axis in axes[-1]:
        axis.set_xlabel("dimension, largest first")
    for place, image in enumerate(images):
        if image is not None:
            bar = figure.colorbar(
                image, ax=axes[:, place], orientation="horizontal", fraction=0.05, aspect=30, pad=0.02
            )
            bar.outline.set_visible(False)
    return figure


@styled
def token_map(values: np.ndarray, tokens: Sequence[str], dimensions: Sequence[int], site: str) -> Figure:
    """|h| of each token and dimension, on a logarithmic scale (as arXiv:2601.22966, Figure 1).

    A bright row is a massive token, a bright column a residual sink.

    Args:
        values: |h| [tokens, dimensions].
        tokens: their texts.
        dimensions: their numbers.
        site: where h was read.
    """
    values = np.asarray(values, dtype=np.float64)
    figure, axes = new_figure(min(9.0, 1.4 + 0.19 * len(tokens)))
    figure.set_figwidth(min(WIDTH, 2.6 + 0.36 * len(dimensions)))
    high = float(values.max())
    low = max(high / 1e4, float(np.percentile(values, 5)))
    image = axes[0].imshow(values, cmap=COLORS, norm=LogNorm(low, high), aspect="auto", interpolation="nearest")
    _name_cells(axes[0], [str(d) for d in dimensions], [f"{i} {_visible(token)}" for i, token in enumerate(tokens)])
    axes[0].set_xlabel("dimension")
    axes[0].set_title(f"|h| at {site}")
    figure.colorbar(image, ax=axes[0], fraction=0.05, pad=0.02).outline.set_visible(False)
    return figure


def _name_cells(axis: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axis.grid(False)
    axis.tick_params(length=0)
    every = max(1, -(-len(rows) // 32))
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7.5)
    axis.set_yticks(range(0, len(rows), every), rows[::every], fontsize=7.5)


def _visible(token: object) -> str:
    return str(token).replace("\n", "\\n").replace("\t", "\\t").strip()[:14]


def _short(site: str) -> str:
    return site.removeprefix("blocks.").replace(".norm", "").replace(".", " ").replace("feed_forward", "feed-forward")


@styled
def over_layers(panels: Mapping[str, Statistics], measure: str, index: int = -1) -> Figure | None:
    """A measure over the sites of one or several models; None if none has it.

    Args:
        panels: statistics by the name of a model.
        measure: of `MEASURES`.
        index: position on the step axis, -1 for the last.
    """
    parts, fraction = MEASURES[measure]
    shown = {name: s for name, s in panels.items() if all(array in s.arrays for array, *_ in parts)}
    if not shown:
        return None
    figure, axes = new_figure(3.1, ncols=len(shown), sharey=True, squeeze=False)
    every = []
    for axis, (name, statistics) in zip(axes[0], shown.items(), strict=True):
        for (array, column, words), color in zip(parts, ("#0072B2", "#D55E00"), strict=False):
            values = statistics.arrays[array][index].astype(np.float64)
            values = values if column is None else values[:, column]
            section = array.partition("/")[0]
            sites = [_short(site) for site in statistics.sites["norm" if section == "residual" else section]]
            if values.ndim == 2:
                axis.fill_between(range(len(sites)), values.min(1), values.max(1), color=color, alpha=0.18, linewidth=0)
                every += [values.min(1), values.max(1)]
                values = values.mean(1)
            axis.plot(range(len(sites)), values, color=color, marker="o", markersize=3, label=words)
            every.append(values)
        step = max(1, -(-len(sites) // (28 // len(shown))))
        axis.set_xticks(range(0, len(sites), step), sites[::step], rotation=90, fontsize=7.5)
        axis.set_title(name)
    scale_values(axes[0, 0], np.concatenate([np.ravel(v) for v in every]), fraction)
    axes[0, 0].set_ylabel(measure)
    axes[0, 0].legend(loc="best", **LEGEND)
    return figure
