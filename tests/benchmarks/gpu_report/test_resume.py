"""Every stage goes on from the result of commands that ended before it was done."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu_report import correctness, kernels, parallel, step, tiles, training
from benchmarks.gpu_report.stage_context import StageContext
from sinks.record.folder import from_json, to_json

Result = dict[str, Any]


class Interrupted(BaseException):
    """Raised by `Measured` in place of a SIGKILL."""


class Measured(list[Any]):
    """What was measured, in order; ends the stage after `most`."""

    most = float("inf")

    def __call__(self, name: Any) -> None:
        if len(self) == self.most:
            raise Interrupted
        self.append(name)


@pytest.fixture
def measured() -> Measured:
    return Measured()


def last(stage: Any, folder: Path, before: Result | None = None, left: float = 1000) -> Result:
    """The last result of a stage, as JSON returns it."""
    result: Result = {}
    try:
        for grown in stage.run(StageContext(folder, True, 10.0, time.monotonic() + left, before or {})):
            result = from_json(to_json(grown))
    except Interrupted:
        pass
    return result


def go_on(stage: Any, folder: Path, measured: Measured, most: float, before: Result | None = None) -> Result:
    """The result of another command, which measures at most `most`; `measured` is of this command."""
    measured.clear()
    measured.most = most
    return last(stage, folder, before)


def test_only_cases_not_known_to_be_right_are_checked(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [correctness.describe(case) for case in correctness.cases(dry=True)]
    wrong = {names[0]}

    def check(case: Result, device: str) -> Result:
        name = correctness.describe(case)
        measured(name)
        error = 1.0 if name in wrong else 0.0
        return {"case": name, "checks": {"output": {"error": error, "limit": 0.5, "passed": name not in wrong}}}

    monkeypatch.setattr(correctness, "check", check)
    result = go_on(correctness, tmp_path, measured, 2)
    assert measured == names[:2]
    assert (len(result["faults"]), result["left_out"]) == (1, [f"{len(names) - 2} of {len(names)} cases"])
    wrong.clear()
    result = go_on(correctness, tmp_path, measured, 9, result)
    assert measured == [names[0], *names[2:]]
    assert (result["faults"], result["left_out"]) == ([], [])
    assert go_on(correctness, tmp_path, measured, 0, result) == result


def test_a_shape_is_measured_whole_by_one_command(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"ours at B"}

    def rows(shape: str) -> Iterator[Result]:
        for contestant in ("ours", "baseline", "baseline that fails"):
            name = f"{contestant} at {shape}"
            measured(name)
            row = {"table": "attention", "contestant": contestant, "ours": contestant == "ours"}
            yield row | ({"refused": "wrong"} if name in refused or "fails" in name else {})

    monkeypatch.setattr(kernels, "_shapes", lambda bench: ([(shape, rows(shape)) for shape in "ABC"], {}))
    monkeypatch.setattr(kernels, "roofs", lambda bench: {"matmul_tflops": commands})
    commands = 1
    result = go_on(kernels, tmp_path, measured, 7)
    assert measured[-1] == "ours at C"
    assert result["complete"] == ["A"]
    commands = 2
    refused.clear()
    result = go_on(kernels, tmp_path, measured, 9, result)
    # B because of a fault of ours, C because it was interrupted; that a baseline fails is a result.
    assert measured == [f"{name} at {shape}" for shape in "BC" for name in ("ours", "baseline", "baseline that fails")]
    assert [(row["shape"], row["roofs"]["matmul_tflops"]) for row in result["rows"]] == [
        (shape, command) for shape, command in zip("ABC", (1, 2, 2), strict=True) for _ in range(3)
    ]
    assert (result["faults"], result["left_out"]) == ([], [])
    assert go_on(kernels, tmp_path, measured, 0, result) == result


def test_a_kernels_tiles_are_ranked_once(measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = {"backward_keys"}

    def ranking(bench: Any, kernel: str, head_dim: int, candidates: Any) -> list[Result]:
        measured(kernel)
        row = {"kernel": kernel, "head_dim": head_dim, "tile": [1, 2, 3, 4], "chosen": True}
        return [row | ({"refused": "no memory"} if kernel in failing else {"ms": 1.0})]

    monkeypatch.setattr(tiles.tiles, "ranking", ranking)
    every = [kernel for kernel, head_dim in tiles.CANDIDATES if head_dim == 64]
    result = go_on(tiles, tmp_path, measured, 3)
    assert measured == every[:3]
    failing.clear()
    result = go_on(tiles, tmp_path, measured, 9, result)
    assert sorted(measured) == sorted([*every[3:], "backward_keys"])
    assert sorted(row["kernel"] for row in result["rows"]) == sorted(every)
    assert not [row for row in result["rows"] if "refused" in row]
    assert go_on(tiles, tmp_path, measured, 0, result) == result


def test_steps_go_on_in_turns_with_a_new_baseline_step(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"gated-norm"}

    def row(runner: step.Runner, result: Result, name: str, *more: Any) -> Result:
        measured(name)
        if name in failing:
            raise RuntimeError("an illegal memory access")
        return {"width": runner.width.name, "name": name, "measured_flops": runner.measured_flops}

    names = ("gated-both", "gated-norm", "learnable-sink")
    monkeypatch.setattr(step, "CONTESTANTS", [(name, False) for name in names])
    monkeypatch.setattr(step, "unavailable", dict)
    monkeypatch.setattr(step, "roofs", lambda bench: {"matmul_tflops": 1.0})
    monkeypatch.setattr(step, "_row", row)
    monkeypatch.setattr(step, "_variant", lambda runner, result, name, *more: row(runner, result, name))
    monkeypatch.setattr(step.Runner, "warm_up", lambda runner, baseline: measured("warm up"))
    monkeypatch.setattr(step.Runner, "statistics_overhead", lambda *_: measured("statistics") or 0.01)
    result = go_on(step, tmp_path, measured, 4)
    assert measured == ["baseline", "statistics", "gated-both", "gated-norm"]
    assert result["rows"][0]["statistics_overhead"] == 0.01
    assert "refused" in result["rows"][-1]
    failing.clear()
    result = go_on(step, tmp_path, measured, 9, result)
    assert measured == ["warm up", "gated-norm", "learnable-sink"]
    assert [row["name"] for row in result["rows"]] == ["baseline", *names]
    # Nothing is built when everything is known.
    assert go_on(step, tmp_path, measured, 0, result) == result
    without = [{k: v for k, v in row.items() if k != "statistics_overhead"} for row in result["rows"]]
    assert go_on(step, tmp_path, measured, 9, result | {"rows": without}) == result
    assert measured == ["warm up", "statistics"]


def test_a_width_that_is_not_reached_in_time_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "unavailable", dict)
    result = last(step, tmp_path, left=-1.0)
    assert (result["rows"], result["left_out"]) == ([], ["everything at 2b-like"])


def test_a_family_is_trained_once_and_as_long_as_the_others(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = SimpleNamespace(fingerprint="a")
    seconds = []

    def train_sections(folder: Path, *more: Any, callbacks: list[training.Clock], **options: Any) -> Result:
        measured(folder.name)
        seconds.append(callbacks[0].seconds)
        return {}

    monkeypatch.setattr(training, "prepare", lambda *_, **__: tmp_path)
    monkeypatch.setattr(training, "InstalledText", lambda *_, **__: SimpleNamespace(content=content))
    monkeypatch.setattr(training, "train_sections", train_sections)
    monkeypatch.setattr(training, "curves", lambda *_: {})
    measured.most = 1
    result = last(training, tmp_path, left=100)
    assert (measured, seconds) == (["baseline"], [pytest.approx(50, abs=1)])
    measured.most = 9
    # Less than the other had: later.
    waiting = last(training, tmp_path, result, left=40)
    assert (measured, waiting["runs"], waiting["left_out"]) == (["baseline"], result["runs"], ["gated-both"])
    ended = last(training, tmp_path, result)
    assert (measured, seconds[1]) == (["baseline", "gated-both"], result["seconds_each"])
    assert (len(ended["runs"]), ended["left_out"]) == (2, [])
    assert go_on(training, tmp_path, measured, 0, ended) == ended
    content.fingerprint = "b"
    assert len(go_on(training, tmp_path, measured, 9, ended)["runs"]) == 2
    assert measured == ["baseline", "gated-both"]


@pytest.mark.parametrize(
    ("left", "each", "expected"), [(400, 100, 4), (365, 100, 4), (300, 100, 3), (91, 100, 1), (80, 100, 0), (-1, -1, 0)]
)
def test_families_are_begun_if_they_can_train_about_as_long_as_the_others(
    left: float, each: float, expected: int
) -> None:
    assert training.affordable(4, left, each) == expected


def test_one_process_trains_once_and_only_strategies_that_failed_again(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"fsdp2"}

    def train(folder: Path, name: str, *more: Any) -> Result:
        measured(name)
        return {"name": name}

    def launch(context: StageContext, names: list[str], *more: Any) -> list[Result]:
        assert names
        for name in names:
            measured(name)
        return [{"name": name} | ({"refused": "exit code 1"} if name in failing else {}) for name in names]

    monkeypatch.setattr(parallel, "train", train)
    monkeypatch.setattr(parallel, "launch", launch)
    monkeypatch.setattr(parallel, "series", lambda folder, row: row)
    monkeypatch.setattr(parallel, "compare", lambda row, alone: row | {"with": alone["name"]})
    result = go_on(parallel, tmp_path, measured, 2)
    assert measured == [parallel.ALONE, "ddp"]
    result = go_on(parallel, tmp_path, measured, 9, result)
    assert measured == ["ddp", "fsdp2"]
    assert result["faults"] == ["fsdp2: exit code 1"]
    failing.clear()
    result = go_on(parallel, tmp_path, measured, 9, result)
    assert measured == ["fsdp2"]
    assert result["rows"] == [
        {"name": parallel.ALONE},
        *({"name": name, "with": parallel.ALONE} for name in parallel.STRATEGIES),
    ]
    assert go_on(parallel, tmp_path, measured, 0, result) == result
