"""Training ends by its clock or by divergence, and its curves are over tokens."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report.parallel import SkewedTokens
from benchmarks.gpu_report.recipe import layered, over, train_sections
from benchmarks.gpu_report.training import Clock, configuration, curves, emergence, thinned
from sinks.record import RunFolder


@pytest.fixture
def data() -> SkewedTokens:
    return SkewedTokens(64, 12, 4)


def sections(**optimization: float) -> dict[str, Any]:
    found = configuration(dry=True)
    found["model"] = over(layered("variants/baseline.yaml")["model"], found["model"])
    changes = {"init_args": {"optimization": optimization}}
    return found | {"model": over(found["model"], changes)}


def test_the_clock_ends_a_run_without_a_last_step(tmp_path: Path, data: SkewedTokens) -> None:
    endless = sections()
    endless["trainer"] |= {"max_steps": -1, "val_check_interval": 7}
    summary = train_sections(tmp_path, endless, data, compile=False, callbacks=[Clock(1.0)])
    steps = summary["steps"]
    assert steps > 7
    assert 1.0 < summary["wall_s"] < 20
    assert summary["sink_ratio_0.3"] is not None
    found = curves(RunFolder(tmp_path), data)
    assert found["tokens"][0] == 7 * 4 * 12
    assert found["tokens"][-1] == steps * 4 * 12  # what it ended with is validated too
    assert len(found["loss"]) == len(found["tokens"])


def test_a_run_that_diverges_is_a_result(tmp_path: Path, data: SkewedTokens) -> None:
    # Finite, but not once it is squared.
    wild = sections(lr=1e30, warmup_steps=0)
    wild["trainer"] |= {"max_steps": 40}
    summary = train_sections(tmp_path, wild, data, compile=False)
    assert summary["diverged"]
    assert summary["steps"] < 40


@pytest.mark.parametrize("count", [0, 1, 2, 19, 20, 21, 1000])
def test_thinned_points_keep_both_ends(count: int) -> None:
    found = thinned(count)
    assert len(found) == min(count, 20)
    assert sorted(set(found)) == found
    if count > 1:
        assert (found[0], found[-1]) == (0, count - 1)


def test_sinks_have_emerged_at_the_first_tenth_of_heads() -> None:
    assert emergence({"tokens": [1e6, 2e6, 3e6], "sink_ratio_0.3": [0.05, 0.1, 0.02]}) == "2"
    assert emergence({"tokens": [1e6], "sink_ratio_0.3": [float("nan")]}) == "-"
