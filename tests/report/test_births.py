"""The first validation above the threshold, over seeds some of which never reach it."""

import math
from pathlib import Path

import numpy as np
import pytest

from sinks.record import RunFolder, Statistics
from sinks.report import load_ablation, write_report
from sinks.report.births import births, median, table
from tests.report.synthetic import Levels, write_run

STEPS = np.array([100, 200, 300, 400])


def run(folder: Path, seed: int, masses: dict[tuple[int, int], list[float]]) -> RunFolder:
    """Two layers of two heads, with a first-token mass of 0.1 but for the given (layer, head)."""
    written = write_run(folder / f"seed{seed}", "v", seed, Levels(), statistics=False)
    mass = np.full((4, 2, 2), 0.1, dtype=np.float32)
    for (layer, head), values in masses.items():
        mass[:, layer, head] = values
    sites = {"attention": ["blocks.0.attention", "blocks.1.attention"]}
    for start in (0, 2):  # in two flushes
        part = slice(start, start + 2)
        written.append_statistics(
            "validation", Statistics(STEPS[part], {"attention/first_token_mass": mass[part]}, sites)
        )
    return written


def test_births_over_three_seeds(tmp_path: Path) -> None:
    rises, never = [0.1, 0.31, 0.9, 0.9], [0.3, 0.3, 0.2, 0.1]  # the threshold itself is not above it
    run(tmp_path / "v", 0, {(1, 0): rises, (0, 1): [0.1, 0.1, 0.1, 0.5]})
    run(tmp_path / "v", 1, {(1, 0): [0.1, 0.1, 0.5, 0.2], (0, 1): never})
    run(tmp_path / "v", 2, {(1, 0): [0.4, math.nan, 0.4, 0.4], (0, 1): never})
    found = table(load_ablation(tmp_path))
    assert found is not None
    assert found.rows == [
        ["v", "blocks.0.attention, head 1", "1 of 3", "never", "400 to never", "1 of 3"],
        ["v", "blocks.1.attention, head 0", "3 of 3", "200", "100 to 300", "2 of 3"],
    ]
    write_report(tmp_path)
    assert "| v | blocks.1.attention, head 0 | 3 of 3 | 200 |" in (tmp_path / "report.md").read_text()
    assert "When sinks are born" in (tmp_path / "report.html").read_text()


def test_without_a_sink_or_statistics_there_is_no_table(tmp_path: Path) -> None:
    run(tmp_path / "v", 0, {})
    assert table(load_ablation(tmp_path)) is None
    bare = write_run(tmp_path / "w/seed0", "w", 0, Levels(), statistics=False)
    (ablation,) = (v for v in load_ablation(tmp_path).variants if v.name == "w")
    assert bare.path == ablation.runs[0].folder.path
    assert births(ablation.runs[0]) is None
    write_report(tmp_path)
    assert "When sinks are born" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 1.0, 2.0], 2.0),
        ([1.0, 2.0], 1.5),
        ([1.0, math.inf], None),
        ([1.0, math.inf, math.inf], math.inf),
        ([math.inf, math.inf], math.inf),
        ([1.0, 2.0, math.inf], 2.0),
    ],
)
def test_a_median_of_some_that_are_never_born(values: list[float], expected: float | None) -> None:
    assert median(values) == expected
