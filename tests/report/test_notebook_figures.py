"""Figures of the notebooks draw the numbers that are stored, and nothing where there is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinks.record import Statistics
from sinks.report import figures, load_ablation
from tests.report.synthetic import Levels, write_ablation, write_run

EFFECTS = ("bias", "contributes", "constant scale", "rescales")


@pytest.fixture
def statistics(tmp_path: Path) -> Statistics:
    return write_run(tmp_path / "baseline/seed0", "baseline", 0, Levels()).statistics()


def images(figure: Any) -> list[np.ndarray]:
    return [np.ma.getdata(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def test_dimensions_are_sorted_by_size_and_shown_over_the_median(statistics: Statistics) -> None:
    mean_abs = statistics.arrays["residual/mean_abs"][-1]
    order = figures.order_of_dimensions(statistics)
    assert order[:2].tolist() == [7, 19]
    statistics.arrays["norm/gain"] = np.full((11, *mean_abs.shape), -0.5, dtype=np.float32)
    figure = figures.dimension_maps({"one": statistics}, largest=4)
    assert figure is not None
    size, gain = images(figure)
    expected = mean_abs[:, order[:4]] / np.median(mean_abs, axis=1, keepdims=True)
    assert size == pytest.approx(expected, rel=1e-5)
    assert (gain == 0.5).all()


def test_a_model_without_a_gate_leaves_its_place_blank(statistics: Statistics) -> None:
    shape = statistics.arrays["residual/mean_abs"].shape
    gate = {"norm/gate_by_channel": np.full(shape, 0.25, dtype=np.float32)}
    gated = Statistics(statistics.steps, statistics.arrays | gate, statistics.sites)
    figure = figures.dimension_maps({"plain": statistics, "gated": gated})
    assert figure is not None
    assert len(images(figure)) == 3
    assert any(text.get_text() == "none" for axis in figure.axes for text in axis.texts)
    bare = Statistics(statistics.steps, {}, statistics.sites)
    assert figures.dimension_maps({"plain": bare}) is None
    assert figures.over_layers({"plain": bare}, "effective weight") is None


def test_a_measure_over_layers_has_the_mean_and_range_of_heads(statistics: Statistics) -> None:
    mass = np.array([[[0.1, 0.3], [0.5, 0.9]]], dtype=np.float32)
    two = Statistics(np.array([0]), {"attention/first_token_mass": mass}, statistics.sites)
    figure = figures.over_layers({"two heads": two}, "first-token mass")
    assert figure is not None
    (axis,) = figure.axes
    assert axis.lines[0].get_ydata() == pytest.approx([0.2, 0.7])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.1, 0.9))


def test_every_measure_is_drawn_of_a_real_record() -> None:
    from sinks.record import RunFolder

    recorded = Path(__file__).parents[2] / "experiments/results/backcopy-float32/runs/baseline/seed0"
    statistics = RunFolder(recorded).statistics()
    for measure in figures.MEASURES:
        assert figures.over_layers({"baseline": statistics}, measure) is not None, measure


def test_tokens_and_dimensions_are_named() -> None:
    figure = figures.token_map(np.array([[1.0, 500.0], [0.5, 40.0]]), ["a", "\n"], [1, 5], "blocks.0.attention.norm")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0 a", "1 \\n"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "5"]


def effects(mean: float) -> dict[str, Any]:
    change = {"mean": mean, "low": mean - 0.01, "high": mean + 0.02}
    return {"all|first": {"effects": dict.fromkeys(EFFECTS, change), "named": []}}


@pytest.fixture
def probed(tmp_path: Path) -> Path:
    root = write_ablation(tmp_path / "all", {"baseline": Levels(mechanism="none")}, seeds=(0, 1))
    for seed, mean in enumerate((0.1, 0.3)):
        run = root / f"baseline/seed{seed}"
        for folder in ("probes", "quantization"):
            (run / folder).mkdir()
        (run / "probes/a.json").write_text(json.dumps({"attention": {"roles": effects(mean)}}))
        (run / "probes/b.json").write_text(json.dumps({"attention": {"roles": effects(9.0)}, "step": 5}))
        for scheme, sign in (("int4", 1), ("fp8", -1)):
            content = {"scheme": scheme, "rows": [8, 65], "quantized": {"change": {"mean": sign * mean}}}
            (run / f"quantization/{scheme}.json").write_text(json.dumps(content))
    return root


def test_roles_are_means_with_the_range_over_seeds_or_the_interval_of_one(probed: Path) -> None:
    ends = figures.probed_places(figures.probes_of(load_ablation(probed)))
    assert list(ends) == ["attention: all|first"]
    figure = figures.roles(ends["attention: all|first"])
    assert figure is not None
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.2] * 4)
    segment = axis.collections[0].get_segments()[0]
    assert segment[:, 0] == pytest.approx([0.1, 0.3])
    one = figures.roles(figures.probed_places(figures.probes_of(probed / "baseline/seed0"))["attention: all|first"])
    assert one is not None
    assert one.axes[0].collections[0].get_segments()[0][:, 0] == pytest.approx([0.09, 0.12])
    series = figures.probed_places(figures.probes_of(load_ablation(probed), over_training=True))
    assert list(series["attention: all|first"]) == ["baseline, step 5"]
    assert figures.roles({}) is None


def test_changes_of_loss_are_means_over_seeds_on_an_axis_that_holds_them(probed: Path) -> None:
    found = figures.quantized(load_ablation(probed))
    assert found["int4"] == {"int4 (8 rows)": {"baseline": [0.1, 0.3]}}
    costs, gains = figures.quantization(found["int4"]), figures.quantization(found["fp8"])
    assert costs is not None
    assert gains is not None
    assert costs.axes[0].lines[0].get_xdata() == pytest.approx([0.2])
    assert (costs.axes[0].get_xscale(), gains.axes[0].get_xscale()) == ("log", "symlog")
    one = figures.quantization_of_one(figures.quantized(probed / "baseline/seed0"))
    assert one is not None
    assert {text.get_text() for text in one.axes[0].get_yticklabels()} == {"int4 (8 rows)", "fp8 (8 rows)"}
    assert figures.quantization({}) is None
