"""The bars of what a head uses of its attention: at the baseline's strongest head of the same seed."""

import dataclasses
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from sinks.record import RunFolder, Statistics
from sinks.report import compare, load_ablation
from sinks.report.ablation import Run
from sinks.report.figures.routes import routes
from sinks.report.routes import ROUTES, table
from sinks.report.run_statistics import statistics_with
from sinks.report.tables import PLUS_MINUS
from tests.report.synthetic import Levels, write_ablation


def test_bars_are_means_over_seeds_at_the_baselines_strongest_head(tmp_path: Path) -> None:
    root = write_ablation(tmp_path, {"baseline": Levels(first=0.9), "gate": Levels(first=0.1)}, heads=3)
    expected: dict[str, list[float]] = {"baseline": [], "gate": []}
    for seed in range(3):
        runs = {name: RunFolder(root / name / f"seed{seed}").statistics("validation") for name in expected}
        mass = runs["baseline"].arrays["attention/first_token_mass"][-1]
        place = np.unravel_index(int(mass.argmax()), mass.shape)
        for name, statistics in runs.items():
            expected[name].append(float(statistics.arrays["attention/effective_weight"][-1][place]))
    figure = routes(compare(load_ablation(root)))
    assert figure is not None
    (axis,) = figure.axes
    used = [bar.get_width() for bar in axis.containers[0]]
    assert used == pytest.approx([np.mean(expected["baseline"]), np.mean(expected["gate"])])
    lost = [bar.get_width() for bar in axis.containers[1]]
    assert [u + x for u, x in zip(used, lost, strict=True)] == pytest.approx([1.0, 1.0])
    assert len(axis.containers) == 2 < len(ROUTES)  # what no run has is not drawn
    shown = table(compare(load_ablation(root)))
    assert shown is not None
    assert [row[0] for row in shown.rows] == ["baseline", "gate"]
    for row, values in zip(shown.rows, expected.values(), strict=True):
        half = (max(values) - min(values)) / 2
        assert row[1] == f"{np.mean(values):.3f} {PLUS_MINUS} {half:.3f}"


def test_without_a_baseline_there_is_no_figure(tmp_path: Path) -> None:
    root = write_ablation(tmp_path, {"gate": Levels()}, described=False)
    assert routes(compare(load_ablation(root))) is None


@pytest.mark.parametrize(("layer", "bars"), [(0, 1), (1, 2)])
def test_a_variant_is_compared_at_the_same_layer(
    layer: int, bars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline's strongest head is in layer 1; a hybrid with attention in one layer may have it there or not."""
    root = write_ablation(tmp_path, {"baseline": Levels(first=0.9), "hybrid": Levels(first=0.1)}, heads=3)

    def of_one_layer(run: Run, name: str) -> Statistics | None:
        found = statistics_with(run, name)
        if found is None or run.folder.path.parent.name != "hybrid":
            return found
        arrays = {n: array[:, [layer]] if n.startswith("attention/") else array for n, array in found.arrays.items()}
        sites = found.sites | {"attention": [f"blocks.{layer}.attention"]}
        return dataclasses.replace(found, arrays=arrays, sites=sites)

    monkeypatch.setattr(import_module("sinks.report.routes"), "statistics_with", of_one_layer)
    figure = routes(compare(load_ablation(root)))
    assert figure is not None
    assert len(figure.axes[0].get_yticks()) == bars


def test_a_run_whose_effective_weight_is_not_defined_has_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other routes would be drawn as if nothing were used."""
    root = write_ablation(tmp_path, {"baseline": Levels(first=0.9), "gate": Levels(first=0.1)}, heads=3)

    def without_a_median(run: Run, name: str) -> Statistics | None:
        found = statistics_with(run, name)
        if found is None or run.folder.path.parent.name != "gate":
            return found
        name = "attention/effective_weight"
        return dataclasses.replace(found, arrays=found.arrays | {name: np.full_like(found.arrays[name], np.nan)})

    monkeypatch.setattr(import_module("sinks.report.routes"), "statistics_with", without_a_median)
    comparison = compare(load_ablation(root))
    figure, shown = routes(comparison), table(comparison)
    assert figure is not None
    assert shown is not None
    assert len(figure.axes[0].get_yticks()) == 1
    assert [row[0] for row in shown.rows] == ["baseline"]
