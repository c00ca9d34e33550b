"""A map with axes and a color scale as a PNG, made in milliseconds because it is made during training.

Pixels are places in a palette, which compress several times faster than colors do: first the colors of the scale, then
one for what is absent, then grays from ink to paper, between which letters are smoothed.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

# Cividis, which reads the same without red-green vision, in equal steps.
COLORS = np.array(
    [(0, 34, 78), (26, 56, 111), (67, 78, 108), (97, 101, 111), (125, 124, 120), (155, 148, 118), (188, 174, 108),
     (222, 201, 88), (254, 232, 56)]
)  # fmt: skip
LEVELS, ABSENT, INK, PAPER = 200, 200, 201, 255
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 320, 120, 46, 44
BAR, BAR_GAP, BAR_LABELS = 16, 18, 62
LETTERS = 12  # pixels


@dataclass(frozen=True)
class Scale:
    """What colors mean.

    Args:
        low, high: values of the darkest and the brightest color; those beyond have it as well.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """0 at the low end ... 1 at the high end; NaN where there is no number."""
        values = values.astype(np.float64)
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log(values / self.low) / np.log(self.high / self.low)
        else:
            values = (values - self.low) / (self.high - self.low)
        return values.clip(0, 1)

    def marks(self) -> list[float]:
        """Values that are named: whole powers of ten, or quarters."""
        if self.log:
            low, high = round(np.log10(self.low)), round(np.log10(self.high))
            return [10.0**power for power in range(low, high + 1)]
        return np.linspace(self.low, self.high, 5).tolist()


def heat_map(
    values: np.ndarray, title: str, rows: Sequence[str], axes: tuple[str, str], scale: Scale, unit: str
) -> bytes:
    """PNG of a map [rows, columns], row 0 at the bottom; gray where there is no number.

    Of more columns than fit, neighbors share one, which has the largest of their values.

    Args:
        values: [rows, columns].
        title: above the map.
        rows: names of the rows.
        axes: names of the horizontal and the vertical axis.
        scale: of the colors.
        unit: of the values.
    """
    from PIL import Image, ImageDraw  # which a bare GPU machine may lack

    together = -(-values.shape[1] // WIDTH)
    shown = _shared(values, together)
    high, wide = _cell(shown.shape)
    image = Image.fromarray(_frame(shown.shape, title, tuple(rows), axes, scale, unit, together).copy())
    bottom = image.height - BOTTOM
    pixels = _levels(scale.place(shown))[::-1].repeat(high, 0).repeat(wide, 1)
    image.paste(Image.fromarray(pixels), (LEFT, bottom - len(pixels)))
    if shown.size <= 64 and wide >= 3 * LETTERS:
        draw = ImageDraw.Draw(image)
        draw.fontmode = "1"  # smoothed letters would take other colors of the scale at their edges
        for (row, column), value in np.ndenumerate(shown):
            if np.isfinite(value):
                at = LEFT + (column + 0.5) * wide, bottom - (row + 0.5) * high
                color = INK if scale.place(np.array(value)) > 0.5 else PAPER
                draw.text(at, f"{value:.2f}", fill=color, font=_font(), anchor="mm")
    image.putpalette(_palette())
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _cell(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a cell in pixels."""
    return int(np.clip(HEIGHT // shape[0], 1, 36)), int(np.clip(WIDTH // shape[1], 1, 64))


@lru_cache(maxsize=64)  # the same at every step of a run
def _frame(
    shape: tuple[int, ...],
    title: str,
    rows: tuple[str, ...],
    axes: tuple[str, str],
    scale: Scale,
    unit: str,
    together: int,
) -> np.ndarray:
    """Everything around a map, whose place is left blank."""
    from PIL import Image, ImageDraw

    high, wide = _cell(shape)
    height, width = high * shape[0], wide * shape[1]
    room = max(height, 120), max(width, 200)  # for the marks of the color bar, and the title
    canvas = np.full((TOP + room[0] + BOTTOM, LEFT + room[1] + BAR_GAP + BAR + BAR_LABELS), PAPER, np.uint8)
    bottom, bar = TOP + room[0], LEFT + room[1] + BAR_GAP
    canvas[TOP:bottom, bar : bar + BAR] = _levels(np.linspace(1, 0, room[0]))[:, None]
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)

    def write(x: float, y: float, text: str, anchor: str) -> None:
        draw.text((x, y), text, fill=INK, font=_font(), anchor=anchor)

    write(8, 6, f"{title} ({unit})", "la")
    write(LEFT - 8, TOP - 8, axes[1], "rs")
    write(LEFT + width / 2, bottom + 40, axes[0] + (f" (largest of {together})" if together > 1 else ""), "ms")
    for row in _thinned(shape[0], height, LETTERS + 2):
        write(LEFT - 8, bottom - (row + 0.5) * high, rows[row], "rm")
    for column in _thinned(shape[1], width, 4 * LETTERS):
        write(LEFT + (column + 0.5) * wide, bottom + 6, str(column * together), "ma")
    for mark in scale.marks():
        write(bar + BAR + 5, bottom - float(scale.place(np.array(mark))) * room[0], f"{mark:g}", "lm")
    return np.asarray(image)


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(LETTERS)


@cache
def _palette() -> list[int]:
    """RGB of every pixel value, one after the other."""
    places = np.linspace(0, len(COLORS) - 1, LEVELS)
    scale = np.stack([np.interp(places, np.arange(len(COLORS)), channel) for channel in COLORS.T], -1)
    grays = np.linspace(34, 255, PAPER - INK + 1)[:, None].repeat(3, 1)
    return np.concatenate([scale, [[205, 205, 205]], grays]).round().astype(int).ravel().tolist()


def _shared(values: np.ndarray, together: int) -> np.ndarray:
    """The largest of each `together` columns; NaN only where all are."""
    if together == 1:
        return values
    missing = -values.shape[1] % together
    padded = np.pad(values.astype(np.float64), ((0, 0), (0, missing)), constant_values=np.nan)
    return np.fmax.reduce(padded.reshape(len(values), -1, together), axis=2)


def _levels(places: np.ndarray) -> np.ndarray:
    """Pixel values of places 0 ... 1 on the scale."""
    return np.where(np.isnan(places), ABSENT, np.nan_to_num(places) * (LEVELS - 1)).round().astype(np.uint8)


def _thinned(count: int, pixels: int, least: int) -> range:
    """Which of so many marks are named, if each needs `least` pixels."""
    return range(0, count, max(1, -(-least * count // pixels)))
