"""A grid's runs, several at a time: what runs, what waits, what fails, and what the terminal shows of it."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from sinks.cli import grid_progress
from sinks.cli.grid import planned, shell_command, where, with_needed
from sinks.cli.grid_progress import GridProgress, duration
from sinks.cli.schedule import PlannedRun, last_step, run_side_by_side
from sinks.cli.training import command_line
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.runs.precision import cpu_precision, has_bfloat16
from tests.cli.small import SMALL, small


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str | None]] = []

    def started(self, run: PlannedRun) -> None:
        self.events.append((run.name, "started"))

    def ended(self, run: PlannedRun, failure: str | None) -> None:
        self.events.append((run.name, failure))

    def refresh(self) -> None: ...


def run(folder: Path, name: str, *more: str, variant: str = "baseline", **options: object) -> PlannedRun:
    arguments = [*small(variant), "--run.dir", str(folder / name), *more]
    return PlannedRun(name, folder / name, 6, arguments, [], **options)  # type: ignore[arg-type]


def test_what_needs_another_run_waits_for_it_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "wrong", "--model.architecture.n_heads=3"),
        run(tmp_path, "needs wrong", needs=tmp_path / "wrong"),
        run(tmp_path, "first"),
        run(
            tmp_path, "second", variant="clip-residual", needs=tmp_path / "first",
            measured={"model.residual_threshold": ("residual_p999", 0.5)},
        ),
        run(tmp_path, "third", needs=tmp_path / "first", measured={"model.norm_rank": ("no_such_number", 1.0)}),
    ]  # fmt: skip
    log = Log()
    failed = run_side_by_side(runs, 2, "", log)
    assert [r.name for r in failed] == ["wrong", "needs wrong", "third"]
    ended = {name: failure for name, failure in log.events if failure != "started"}
    assert ended.keys() == {r.name for r in runs}
    assert ended["wrong"] == "exit code 2"
    assert ended["needs wrong"] == f"{tmp_path / 'wrong'} did not finish"
    assert "no_such_number" in str(ended["third"])
    second = RunFolder(tmp_path / "second")
    threshold = second.config()["model"]["init_args"]["residual_threshold"]
    assert threshold == 0.5 * RunFolder(tmp_path / "first").summary()["residual_p999"]
    assert second.provenance()["command"][:2] == ["sinks", "fit"]
    assert log.events.index(("first", None)) < log.events.index(("second", "started"))

    log = Log()
    assert run_side_by_side(runs[2:4], 2, "", log) == []
    assert log.events == []


def test_a_run_whose_configuration_changed_is_tried_again(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("{}")
    made = PlannedRun("a", tmp_path / "a", 6, [], [config])
    assert not made.done
    made.folder.mkdir()
    made.summary.write_text("{}")
    assert made.done
    os.utime(made.summary, (1e9, 1e9))
    assert not made.done
    # Here `true` stands for a command that finds the run finished and of the same configuration.
    assert run_side_by_side([made], 1, "true", Log()) == []
    assert made.done


def test_launch_is_in_front_of_the_command(tmp_path: Path) -> None:
    script = tmp_path / "launch.sh"
    script.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/called; mkdir -p {tmp_path}/a; echo "{{}}" > {tmp_path}/a/summary.json\n'
    )
    script.chmod(0o755)
    made = PlannedRun("a", tmp_path / "a", 6, ["--x=1"], [])
    assert run_side_by_side([made], 1, f"{script} --one", Log()) == []
    assert (tmp_path / "called").read_text().split() == ["--one", sys.executable, "-m", "sinks", "fit", "--x=1"]


ABLATION = {
    "configs": ["trainer.yaml"],
    "steps": 10,
    "run_seconds": {"bf16-mixed": 100, "32-true": 200},
    "variants": {
        "b": {"config": "b.yaml", "needs": "a", "measured": {"model.x": {"key": "k", "times": 2.0}}},
        "a": {"config": "a.yaml"},
    },
}


def test_what_others_need_comes_first() -> None:
    runs = planned(ABLATION, Path("runs"), ["b", "a"], [0, 1], 10)
    assert [r.name for r in runs] == ["a seed 0", "a seed 1", "b seed 0", "b seed 1"]
    assert runs[2].needs == runs[0].folder
    assert shell_command(runs[3]).endswith('--model.x="$(sinks value runs/a/seed1 k --times=2.0)"')


def test_what_is_needed_is_added_however_far_and_a_circle_is_rejected() -> None:
    chain = {"a": {}, "b": {"needs": "a"}, "c": {"needs": "b"}, "d": {}}
    assert with_needed({"variants": chain}, ["c", "d"]) == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="variant c needs itself"):
        with_needed({"variants": chain | {"a": {"needs": "c"}}}, ["c"])


@pytest.mark.parametrize(("fast", "told"), [(True, "bf16-mixed, as the CPU has bfloat16"), (False, "no bfloat16")])
def test_the_terminal_states_precision_and_time(
    fast: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer.yaml").write_text("trainer: {precision: '${cpu_precision:}'}")
    monkeypatch.setattr("sinks.runs.precision.has_bfloat16", lambda: fast)
    runs = planned(ABLATION, tmp_path, ["a"], [0, 1], 10)
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "metrics.jsonl").write_text('{"step": 5}\n')
    line = where(ABLATION, runs, 2)
    assert told in line
    assert f"about {duration(1.5 * (100 if fast else 200) / 2)} " in line


def test_progress_is_the_pace_of_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = mock.Mock(return_value=0.0)
    monkeypatch.setattr(grid_progress.time, "monotonic", clock)
    runs = [PlannedRun(f"run {i}", tmp_path / str(i), 100, [], []) for i in range(4)]
    for made in runs:
        made.folder.mkdir()
    runs[0].summary.write_text("{}")  # done before
    (runs[1].folder / "metrics.jsonl").write_text('{"step": 50}\n')  # interrupted before
    progress = GridProgress(runs)
    assert progress.line() == "run 2 of 4"
    progress.started(runs[1])
    progress.started(runs[2])
    (runs[1].folder / "metrics.jsonl").write_text('{"step": 50}\n{"step": 90}\n{"st')
    (runs[2].folder / "metrics.jsonl").write_text('{"step": 60}\n')
    clock.return_value = 200.0
    assert last_step(runs[1]) == 90
    # 100 of the 250 steps that were left took 200 s.
    assert progress.line() == "run 2 of 4, 5 min left"
    runs[1].summary.write_text("{}")
    progress.ended(runs[1], None)
    progress.ended(runs[2], "exit code 1")
    progress.close()
    error = capsys.readouterr().err
    assert "run 1 finished, run 3 of 4, 4 min left" in error
    assert "run 2 failed: exit code 1" in error


def test_without_bfloat16_instructions_a_cpu_run_is_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = [*SMALL, f"--run.dir={tmp_path}"]
    monkeypatch.setattr("sinks.cli.training.cpu_precision", lambda: "32-true")
    built = command_line(arguments, run=False)
    assert built.trainer.precision == built.config.trainer.precision == "32-true"
    assert yaml.safe_load(built.text())["trainer"]["precision"] == "32-true"
    built = command_line([*arguments, "--trainer.precision=bf16-mixed"], run=False)
    assert built.trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
def test_each_kind_of_bfloat16_instruction_counts(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instruction: False})
    assert not has_bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, instruction: True})
    assert has_bfloat16()
    assert cpu_precision() == "bf16-mixed"


def test_a_cpu_can_be_told_to_do_without_them() -> None:
    command = "from sinks.runs.precision import cpu_precision; print(cpu_precision())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "32-true\n"
