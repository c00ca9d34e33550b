"""Runs that recorded the same values are told from runs that did not."""

import shutil
from pathlib import Path

import numpy as np

from benchmarks.same_values import compare
from sinks.record import RunFolder
from sinks.record.folder import Statistics


def a_run(root: Path, loss: float = 1.5, mass: float = 0.25) -> Path:
    folder = RunFolder(root / "baseline" / "seed0")
    folder.path.mkdir(parents=True)
    folder.write_config("{}")
    folder.append_metrics([{"step": 1, "train/loss": loss, "wall_s": float(mass)}])
    for stage in ("train", "validation"):
        folder.append_statistics(stage, Statistics(np.array([1]), {"a/b": np.array([[mass, np.nan]])}, {"a": ["x"]}))
    return root


def test_equal_runs_have_no_difference(tmp_path: Path) -> None:
    shutil.copytree(a_run(tmp_path / "one"), tmp_path / "other")
    compared, differing = compare(tmp_path / "one", tmp_path / "other")
    assert compared == 2 + 2 * (1 + 2)  # step and loss; of each stage its step and two values
    assert differing == []


def test_every_value_that_differs_is_named(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one"), a_run(tmp_path / "other", np.nextafter(1.5, 2), np.nextafter(0.25, 1))
    run = "baseline/seed0"
    assert compare(one, other)[1] == [f"{run} step 1 train/loss", f"{run} train a/b", f"{run} validation a/b"]


def test_a_run_in_one_folder_alone_is_a_difference(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one"), a_run(tmp_path / "other")
    shutil.move(other / "baseline", other / "dyt")
    assert len(compare(one, other)[1]) == 2
