"""Figures as inline SVG, and maps with a step slider."""

import json
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest

from sinks.report import compare, figures, load_ablation
from sinks.report.figures.inline import contrast, on_dark, to_svg
from sinks.report.figures.style import COLORS, Drawing, new_figure
from sinks.report.outcomes import ATTENTION, RESIDUAL, Comparison
from sinks.report.step_maps import PALETTE, step_maps
from tests.report.synthetic import BACKCOPY, write_ablation


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    chosen = {name: BACKCOPY[name] for name in ("baseline", "gated-attention", "dyt")}
    return compare(load_ablation(write_ablation(tmp_path_factory.mktemp("runs"), chosen)))


def marks(svg: str) -> list[list[object]]:
    found = re.search("data-marks='([^']*)'", svg)
    assert found
    return json.loads(unescape(found[1]))


def test_a_mark_lies_where_its_value_is_drawn() -> None:
    figure, axes = new_figure(3.0)
    axis = axes[0]
    axis.set_xlim(0, 10)
    axis.set_ylim(0, 1)
    dots = axis.scatter([0, 10], [0, 1], color="#0072B2")
    figure.belongs("one", dots)
    figure.points(axis, "one", np.array([[0.0, 0.0], [10.0, 1.0], [np.nan, 0.5]]), ["low", "high", "nowhere"])
    svg = to_svg(figure, "name", "Title").svg
    low, high = marks(svg)
    drawn = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg[svg.index('data-variant="one"') :])
    places = [(float(x), float(y)) for x, y in drawn[:2]]
    assert [tuple(low[:2]), tuple(high[:2])] == [pytest.approx(place, abs=0.1) for place in places]
    assert [low[4:], high[4:]] == [["one", "low"], ["one", "high"]]


def test_ids_begin_with_the_name_and_colors_are_the_pages(comparison: Comparison) -> None:
    figure = figures.double_dissociation(comparison)
    assert isinstance(figure, Drawing)
    inline = to_svg(figure, "fig", "Both sinks")
    ElementTree.fromstring(inline.svg.replace("xlink:", ""))
    assert all(name.startswith("fig-") for name in re.findall(r' id="([^"]*)"', inline.svg))
    assert not re.search(r"#[0-9a-f]{6}", inline.svg)
    assert {f"var(--c{color[1:]})" for color in inline.colors} <= set(re.findall(r"var\(--c\w+\)", inline.svg))


def test_every_run_of_the_dissociation_is_told(comparison: Comparison) -> None:
    figure = figures.double_dissociation(comparison)
    assert figure
    said = {(str(mark[4]), str(mark[5])) for mark in marks(to_svg(figure, "fig", "").svg)}
    for variant in comparison.ablation.variants:
        for run in variant.runs:
            words = f"first-token mass {run.value(ATTENTION):.3f}, R {run.value(RESIDUAL):.2f}"
            assert (variant.name, f"{variant.short}, seed {run.seed}: {words}") in said


@pytest.mark.parametrize("draw", ["first_token_mass_over_training", "routes", "sorted_dimensions"])
def test_what_the_other_figures_tell_are_their_variants(comparison: Comparison, draw: str) -> None:
    figure = getattr(figures, draw)(comparison)
    if figure is None:
        pytest.skip("the synthetic runs have no routes")
    inline = to_svg(figure, "fig", "")
    told = {mark[4] for mark in marks(inline.svg)}
    assert told <= {variant.name for variant in comparison.ablation.variants}
    assert told <= set(re.findall(r'data-variant="([^"]*)"', inline.svg))
    assert "baseline" in told


@pytest.mark.parametrize("color", sorted({color for of in COLORS.values() for color in of}))
def test_colors_can_be_seen_on_dark(color: str) -> None:
    assert contrast(on_dark(color), "#15191e") >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_maps_hold_what_was_recorded(comparison: Comparison) -> None:
    found = step_maps(comparison.ablation.variants)
    assert found
    assert len(PALETTE) == 33
    for one, variant in zip(found["maps"], comparison.ablation.variants, strict=True):
        recorded = [run.folder.statistics() for run in variant.runs]
        for frame, step in zip(one.values, found["steps"], strict=True):
            expected = np.concatenate(
                [s.by_layer("attention/first_token_mass")[list(s.steps).index(step)] for s in recorded], axis=1
            )
            assert np.array(frame, dtype=float) == pytest.approx(expected.ravel(), abs=5e-4)
        last = expected.ravel()
        titles = re.findall(r"<title>([^<]*)</title>", one.svg)
        assert titles == [f"{text}: {value:.3f}" for text, value in zip(one.texts, last, strict=True)]


def test_without_maps_there_is_no_slider() -> None:
    assert step_maps([]) is None
