"""Style and helpers shared by the figures.

Color shows which sink a variant acts on (black: the baseline; blues: attention side; oranges: residual side; greens
and purples: both), and every variant also has its own marker and dashes, so that nothing depends on color alone.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from sinks.report.ablation import Ablation, Side, Variant

WIDTH = 9.0  # inches; at 900 pixels of a page, 10 pt text is 14 pixels high
INK = "#222222"
FAINT = "#8a8a8a"
SIDES: list[tuple[Side, str]] = [
    ("attention", "attention side"),
    ("residual", "residual side"),
    ("both", "both sides"),
    ("none", "controls"),
    ("unknown", "variants"),
]
COLORS: dict[Side, list[str]] = {
    "attention": ["#0072B2", "#56B4E9", "#1B3A5C", "#3E9FA8", "#7A8FD6"],
    "residual": ["#D55E00", "#E8A200", "#8C3B00", "#F2876B", "#B0706A"],
    "both": ["#00805E", "#9A5BB5", "#7FB800", "#5B2A86", "#4D8076"],
    "none": ["#777777", "#A0A0A0"],
    "unknown": ["#0072B2", "#D55E00", "#00805E", "#E8A200", "#56B4E9", "#9A5BB5", "#8C3B00", "#777777"],
}
MARKERS = "osD^vPX<>p"
LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 2.6}
DASHES: list[Any] = ["-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.5, 1.4, 1.5))]
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

VARIANT = "variant "  # begins the id of an artist that belongs to one

P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, the same in every figure."""

    color: str
    marker: str
    dash: Any
    baseline: bool = False


@dataclass(frozen=True)
class Mark:
    """What a page says on hover, and where.

    Args:
        axes: whose data coordinates these are.
        box: left, bottom, right, top; a point has no width and no height.
        variant: name of the variant.
        text: what is said.
    """

    axes: Axes
    box: tuple[float, float, float, float]
    variant: str
    text: str


class Drawing(Figure):
    """A figure that knows which of its artists belong to which variant, and what each value is.

    Args:
        marks: what a page says on hover.
        others: passed on.
    """

    def __init__(self, *others: Any, **options: Any) -> None:
        super().__init__(*others, **options)
        self.marks: list[Mark] = []

    def belongs(self, variant: str, *artists: Artist) -> None:
        """Let artists be followed as those of a variant."""
        for artist in artists:
            artist.set_gid(VARIANT + variant)

    def points(self, axes: Axes, variant: str, xy: np.ndarray, texts: Sequence[str]) -> None:
        """Say a text at each of the points [N, 2]."""
        for (x, y), text in zip(xy, texts, strict=True):
            self.marks.append(Mark(axes, (x, y, x, y), variant, text))


def styled(function: Callable[P, F]) -> Callable[P, F]:
    """Draw in the report's style without changing matplotlib's settings."""

    @wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> F:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The PNG; deterministic."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def looks(ablation: Ablation) -> dict[str, Look]:
    """Variant name -> its look."""
    found: dict[str, Look] = {}
    counts: dict[Side, int] = {}
    for variant in ablation.variants:
        if variant is ablation.baseline:
            found[variant.name] = Look(INK, "*", "-", baseline=True)
            continue
        n = counts.get(variant.side, 0)
        counts[variant.side] = n + 1
        crowded = sum(v.side == variant.side for v in ablation.variants) > len(COLORS["attention"])
        colors = COLORS["unknown" if crowded and len({v.side for v in ablation.variants}) == 1 else variant.side]
        dash = DASHES[(n + n // len(colors)) % len(DASHES)]
        found[variant.name] = Look(colors[n % len(colors)], MARKERS[n % len(MARKERS)], dash)
    return found


def key_of(look: Look) -> str:
    """A variant's line and marker as a small SVG, in the page's colors."""
    color = f"var({'--ink' if look.baseline else '--c' + look.color.lower().removeprefix('#')})"
    dash = "" if look.dash == "-" else f' stroke-dasharray="{" ".join(str(2 * part) for part in look.dash[1])}"'
    marker = MarkerStyle(look.marker)
    points = marker.get_path().transformed(marker.get_transform())
    to_svg = Affine2D().scale(4.5, -4.5).translate(15, 6)
    shape = path_to_svg(points.transformed(to_svg))
    return (
        f'<svg viewBox="0 0 30 12" aria-hidden="true"><path d="M0 6H30" stroke="{color}" stroke-width="1.8"{dash}/>'
        f'<path d="{shape}" fill="{color}"/></svg>'
    )


def path_to_svg(path: Path) -> str:
    """The `d` attribute of a path."""
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    return "".join(
        letters[code] + ("" if code == Path.CLOSEPOLY else " ".join(f"{value:.2f}" for value in vertices))
        for vertices, code in path.iter_segments(simplify=False)
    )


def new_figure(height: float, **grid: Any) -> tuple[Drawing, np.ndarray]:
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
    figure = Drawing(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure, np.atleast_1d(figure.subplots(**grid))


def name_of(variant: Variant, width: int = 34) -> str:
    """A variant's name in figures, in lines of at most `width` letters."""
    return "\n".join(textwrap.wrap(variant.short if variant.runs else f"{variant.short} (diverged)", width))


def scale_values(axis: Axes, values: np.ndarray, unit_interval: bool) -> None:
    finite = values[np.isfinite(values)]
    if unit_interval:
        axis.set_ylim(-0.02, 1.02)
    elif len(finite) and finite.min() > 0 and finite.max() / finite.min() > 50:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
