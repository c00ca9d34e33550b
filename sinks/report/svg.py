"""Charts as inline SVG: axes with units, ticks and a legend; every mark has its value as a title, shown on hover.

Colors of lines are CSS variables of the page and text is `currentColor`, so that one drawing serves light and dark. The
color scale of maps is cividis, which reads the same without red-green vision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import LogLocator, MaxNLocator

# Light and dark color of each series, in order; with the markers, nothing depends on color alone.
SERIES = [("#0072B2", "#56B4E9"), ("#D55E00", "#F59E5B"), ("#00805E", "#3FCBA0"), ("#777777", "#A9A9A9")]
MARKERS = "osD^"
MAP = matplotlib.colormaps["cividis"]
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 74, 22, 12, 46


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        name: in the legend.
        x, y: values [N]; where y is NaN there is a gap.
        low, high: of a band around the line [N].
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Args:
        label: with the unit.
        low, high: its ends; above zero on a logarithmic axis.
        log: whether it is logarithmic.
        whole: whether only whole numbers are marked.
    """

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def place(self, value: np.ndarray) -> np.ndarray:
        """Where values are, 0 at the low end and 1 at the high one."""
        if self.log:
            return np.log(value / self.low) / np.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        locator = LogLocator(numticks=7) if self.log else MaxNLocator(6, integer=self.whole)
        slack = 1e-9 * (self.high - self.low)
        return [
            float(t) for t in locator.tick_values(self.low, self.high) if self.low - slack <= t <= self.high + slack
        ]


def axis_over(label: str, values: Sequence[np.ndarray], log: bool = False, zero: bool = False) -> Axis:
    """An axis that covers all finite values, the same for every panel of a figure.

    Args:
        label: with the unit.
        values: arrays of any shape.
        log: whether it is logarithmic; values of zero and below are then not drawn.
        zero: whether a linear axis begins at zero.
    """
    known = np.concatenate([np.ravel(v) for v in values] or [np.ones(1)]).astype(float)
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.1, 1.0)
    if log:
        low, high = 10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high))
        return Axis(label, float(low), float(high if high > low else 10 * low), log=True)
    low = min(low, 0.0) if zero else low
    margin = 0.05 * ((high - low) or 1.0)
    return Axis(label, low if zero and low == 0 else low - margin, high + margin)


def number(value: float) -> str:
    """At most four significant digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, reference: float | None = None) -> str:
    """Lines with markers over an axis.

    Args:
        title: what a screen reader says.
        series: at most four.
        x, y: the axes.
        reference: value of y that is marked by a dashed line.
    """
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(values: np.ndarray, axis: Axis) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            place = axis.place(np.asarray(values, dtype=float))
        return LEFT + width * place if axis is x else TOP + height * (1 - place)

    parts = [_frame(x, y, lambda v: float(at(np.array(v), x)), lambda v: float(at(np.array(v), y)))]
    if reference is not None and y.low <= reference <= y.high:
        line = float(at(np.array(reference), y))
        parts.append(f'<path class="reference" d="M{LEFT} {line:.1f}H{WIDTH - RIGHT}"/>')
    for index, one in enumerate(series):
        across, up = at(one.x, x), at(one.y, y)
        shown = np.isfinite(up)
        if one.low is not None and one.high is not None:
            parts.append(_band(across, at(one.low, y), at(one.high, y), index))
        parts.append(f'<path class="line s{index}" d="{_path(across, up, shown)}"/>')
        for i in np.flatnonzero(shown):
            label = escape(f"{one.name}, {x.label} {number(one.x[i])}: {number(one.y[i])}")
            mark = _marker(MARKERS[index % len(MARKERS)], across[i], up[i])
            parts.append(f'<path class="mark s{index}" d="{mark}"><title>{label}</title></path>')
    return _legend(series) + _svg(title, WIDTH, HEIGHT, parts)


def heat_map(
    title: str,
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    labels: tuple[str, str],
    scale: Axis,
    cell: Callable[[int, int], str],
    height: float = 14.0,
) -> str:
    """A map [rows, columns] with a color scale; cells without a number stay empty.

    Args:
        title: what a screen reader says.
        values: [rows, columns].
        columns, rows: names of the columns and rows, thinned out where they do not fit.
        labels: of the horizontal and the vertical axis.
        scale: of the colors.
        cell: (row, column) -> what is shown on hover before the value.
        height: of a row, in pixels.
    """
    left = max(LEFT, 34 + 7 * max(map(len, rows)))
    count_rows, count = values.shape
    inner, tall = WIDTH - left - RIGHT, height * count_rows
    step = inner / count
    with np.errstate(divide="ignore", invalid="ignore"):
        places = scale.place(np.asarray(values, dtype=float)).clip(0, 1)
    parts = []
    for row in range(count_rows):
        parts.append(f'<g transform="translate({left} {TOP + row * height:.1f})">')
        for column in np.flatnonzero(np.isfinite(values[row])):
            text = escape(f"{cell(row, int(column))}: {number(values[row, column])}")
            fill = to_hex(MAP(float(places[row, column])))
            parts.append(f'<rect x="{column * step:.1f}" width="{step:.2f}" height="{height:g}" fill="{fill}">'
                         f"<title>{text}</title></rect>")  # fmt: skip
        parts.append("</g>")
    every = max(1, -(-count_rows * 11 // int(tall)))
    for row in range(0, count_rows, every):
        parts.append(_text(left - 6, TOP + (row + 0.5) * height + 4, rows[row], "end"))
    widest = 7 * max(map(len, columns)) + 6
    for place in range(0, count, max(1, int(np.ceil(widest / step)))):
        parts.append(_text(left + (place + 0.5) * step, TOP + tall + 15, columns[place], "middle"))
    parts.append(_text(left + inner / 2, TOP + tall + 33, labels[0], "middle", "label"))
    parts.append(_text(14, TOP + tall / 2, labels[1], "middle", "label", turned=True))
    parts.append(_scale(scale, left, TOP + tall + 44, inner))
    return _svg(title, WIDTH, TOP + tall + 88, parts)


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:g} {height:.0f}"'
    return f'<svg role="img" aria-label="{escape(title)}" {size}>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


def _frame(x: Axis, y: Axis, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, up(tick) + 4, number(tick), "end"))
    for tick in x.ticks():
        parts.append(f'<path class="axis" d="M{across(tick):.1f} {bottom}v4"/>')
        parts.append(_text(across(tick), bottom + 16, number(tick), "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, "middle", "label"))
    parts.append(_text(13, (TOP + bottom) / 2, y.label, "middle", "label", turned=True))
    return "".join(parts)


def _path(across: np.ndarray, up: np.ndarray, shown: np.ndarray) -> str:
    """A line with gaps where nothing is shown."""
    parts, drawing = [], False
    for i in range(len(across)):
        if shown[i]:
            parts.append(f"{'L' if drawing else 'M'}{across[i]:.1f} {up[i]:.1f}")
        drawing = bool(shown[i])
    return "".join(parts)


def _band(across: np.ndarray, low: np.ndarray, high: np.ndarray, index: int) -> str:
    shown = np.isfinite(low) & np.isfinite(high)
    if shown.sum() < 2:
        return ""
    edge = [f"{a:.1f} {v:.1f}" for a, v in zip(across[shown], high[shown], strict=True)]
    back = [f"{a:.1f} {v:.1f}" for a, v in zip(across[shown], low[shown], strict=True)][::-1]
    return f'<path class="band s{index}" d="M{"L".join(edge + back)}Z"/>'


def _marker(kind: str, x: float, y: float, r: float = 3.2) -> str:
    if kind == "o":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    if kind == "s":
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z"
    if kind == "D":
        return f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r} {1.3 * r}l{-1.3 * r} {1.3 * r}l{-1.3 * r} {-1.3 * r}Z"
    return f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r} {2.3 * r}h{-2.6 * r}Z"


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    marks = [
        f'<span><svg class="key" viewBox="0 0 22 12" aria-hidden="true"><path class="line s{i}" d="M0 6H22"/>'
        f'<path class="mark s{i}" d="{_marker(MARKERS[i % len(MARKERS)], 11, 6)}"/></svg>{escape(one.name)}</span>'
        for i, one in enumerate(series)
    ]
    return f'<div class="legend">{"".join(marks)}</div>'


def _scale(scale: Axis, left: float, top: float, width: float, steps: int = 48) -> str:
    parts = [
        f'<rect x="{left + i * width / steps:.1f}" y="{top:.1f}" width="{width / steps + 0.5:.2f}" height="9" '
        f'fill="{to_hex(MAP((i + 0.5) / steps))}"/>'
        for i in range(steps)
    ]
    for tick in scale.ticks():
        parts.append(_text(left + width * float(scale.place(np.array(tick))), top + 22, number(tick), "middle"))
    parts.append(_text(left + width / 2, top + 38, scale.label, "middle", "label"))
    return "".join(parts)
