"""Maps as images: colors on the scale, the largest of columns that share a pixel, gray where there is no number."""

import io

import numpy as np
import pytest
from PIL import Image

from sinks.callbacks import heat_map as drawn
from sinks.callbacks.heat_map import Scale, heat_map

UNIT = Scale(0, 1)


def pixels(values: np.ndarray, scale: Scale = UNIT) -> np.ndarray:
    """The map's own pixels [height, width, 3], row 0 at the top."""
    rows = [str(row) for row in range(len(values))]
    image = np.asarray(
        Image.open(io.BytesIO(heat_map(values, "T", rows, ("head", "layer"), scale, "u"))).convert("RGB")
    )
    high, wide = drawn._cell(values.shape)
    bottom = len(image) - drawn.BOTTOM
    inside = image[bottom - high * len(values) : bottom, drawn.LEFT : drawn.LEFT + wide * values.shape[1]]
    return inside[::-1]


def test_colors_are_those_of_the_scale_and_row_0_is_at_the_bottom() -> None:
    values = np.linspace(0, 1, 30 * 9).reshape(30, 9)
    shown = pixels(values)
    assert tuple(shown[0, 0]) == tuple(drawn.COLORS[0])
    assert tuple(shown[-1, -1]) == tuple(drawn.COLORS[-1])
    assert shown[:, 0].astype(int).sum(-1)[-1] > shown[:, 0].astype(int).sum(-1)[0]


def test_no_number_is_gray_and_what_is_beyond_the_scale_has_its_end() -> None:
    shown = pixels(np.array([[np.nan, -1.0, 5.0] * 40]))
    wide = drawn._cell((1, 120))[1]
    assert tuple(shown[0, 0]) == (205, 205, 205)
    assert tuple(shown[0, wide]) == tuple(drawn.COLORS[0])
    assert tuple(shown[0, 2 * wide]) == tuple(drawn.COLORS[-1])


def test_a_logarithmic_scale_marks_powers_of_ten() -> None:
    scale = Scale(0.1, 100, log=True)
    assert scale.marks() == pytest.approx([0.1, 1, 10, 100])
    assert scale.place(np.array([0.1, 1, 100, 0.0])) == pytest.approx([0, 1 / 3, 1, 0])
    assert UNIT.marks() == [0, 0.25, 0.5, 0.75, 1]


def test_of_columns_that_share_a_pixel_the_largest_is_shown() -> None:
    values = np.zeros((2, 3 * drawn.WIDTH - 1))
    values[1, 301] = 1.0
    values[0, 0:3] = np.nan
    shared = drawn._shared(values, 3)
    assert shared.shape == (2, drawn.WIDTH)
    assert shared[1, 100] == 1.0
    assert np.nansum(shared) == 1.0
    assert np.isnan(shared).sum() == 1


def test_axes_and_numbers_are_written() -> None:
    values = np.array([[0.5, 0.9]])
    plain = heat_map(values, "T", ["0"], ("head", "layer"), UNIT, "u")
    assert plain.startswith(b"\x89PNG")
    assert plain != heat_map(values, "T", ["0"], ("head", "layer"), UNIT, "other unit")
    assert plain != heat_map(values, "T", ["7"], ("head", "layer"), UNIT, "u")
    assert plain == heat_map(values, "T", ["0"], ("head", "layer"), UNIT, "u")
