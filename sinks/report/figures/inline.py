"""A matplotlib figure as inline SVG: in the page's colors, light and dark, and with what a page says on hover."""

import io
import json
import re
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb

from sinks.report.figures.style import FAINT, INK, VARIANT, Drawing

# Drawn in the colors of the page's text, lines and ground.
OF_THE_PAGE = {INK: "ink", FAINT: "soft", "#e6e6e6": "line", "#ffffff": "ground"}
DARK_GROUND = "#15191e"
CONTRAST = 4.5  # of lines and small text on that ground (WCAG 2.2, AA)
COLOR = re.compile(r"#[0-9a-f]{6}\b")
POINTS = 72  # of an inch


@dataclass(frozen=True)
class Inline:
    """A figure for a page.

    Args:
        svg: its element; colors are variables of the page.
        colors: those that it needs besides `OF_THE_PAGE`, as hex numbers.
    """

    svg: str
    colors: frozenset[str]


def variable(color: str) -> str:
    """The page's variable for a hex color."""
    return f"--c{color.removeprefix('#')}"


def _luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colors, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def on_dark(color: str) -> str:
    """The color, mixed with as much white as it needs to be seen on a dark page."""
    for white in np.linspace(0, 1, 21):
        mixed = to_hex((1 - white) * np.asarray(to_rgb(color)) + white)
        if contrast(mixed, DARK_GROUND) >= CONTRAST:
            break
    return mixed


def to_svg(figure: Drawing, name: str, title: str) -> Inline:
    """Inline SVG; deterministic.

    Args:
        figure: what is drawn.
        name: unique on the page; begins all its ids.
        title: what a screen reader says.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(rf'id="{VARIANT}([^"]*)"', r'data-variant="\1"', text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    colors = {color for color in COLOR.findall(text) if color not in OF_THE_PAGE}
    text = COLOR.sub(
        lambda found: f"var({'--' + OF_THE_PAGE[found[0]] if found[0] in OF_THE_PAGE else variable(found[0])})", text
    )
    width, height = (size * POINTS for size in figure.get_size_inches())
    head = (
        f'<svg class="drawing" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}" '
        f"data-marks='{escape(json.dumps(_marks(figure, width, height)))}'>"
    )
    return Inline(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1), frozenset(colors))


def _marks(figure: Drawing, width: float, height: float) -> list[list[object]]:
    """[left, top, right, bottom, variant, text] of each mark, in the SVG's units; what lies outside its axes is left
    out."""
    found: list[list[object]] = []
    to_figure = figure.transFigure.inverted()
    for mark in figure.marks:
        (left, bottom), (right, top) = to_figure.transform(mark.axes.transData.transform([mark.box[:2], mark.box[2:]]))
        place = [left * width, (1 - top) * height, right * width, (1 - bottom) * height]
        if np.isfinite(place).all():
            found.append([*(round(float(value), 1) for value in place), mark.variant, mark.text])
    return found
