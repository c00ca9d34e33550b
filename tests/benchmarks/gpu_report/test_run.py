"""Budget, resumption and failure, with fake stages."""

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report import run as running
from benchmarks.gpu_report.__main__ import main
from benchmarks.gpu_report.results import Results
from benchmarks.gpu_report.run import Report, pack
from benchmarks.gpu_report.stages import STAGES, Stage, chosen, shares
from sinks.errors import UserError
from sinks.record.lock import run_lock
from tests.benchmarks.gpu_report.fakes.quick import runs
from tests.benchmarks.gpu_report.processes import alive

QUICK = Stage("a", "correctness", "tests.benchmarks.gpu_report.fakes.quick", least=0.05, weight=1)
FAILING = Stage("d", "step", "tests.benchmarks.gpu_report.fakes.failing", least=0.05, weight=1)
HANGING = Stage("b", "kernels", "tests.benchmarks.gpu_report.fakes.hanging", least=0.05, weight=1)
LONG = Stage("c", "tiles", "tests.benchmarks.gpu_report.fakes.long", least=0.05, weight=1)
TRAINING = Stage("e", "training", "tests.benchmarks.gpu_report.fakes.quick", least=0.05, weight=1)


def result(folder: Path, stage: Stage) -> dict[str, Any]:
    return json.loads((folder / f"{stage.file}.json").read_text())


@pytest.mark.usefixtures("forked")
def test_finished_stages_are_not_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert Report(tmp_path, 10, dry=True).run([QUICK]) == 0
    assert runs(tmp_path / "work" / QUICK.file) == 1
    record = result(tmp_path, QUICK)
    assert (record["state"], record["result"]) == ("done", {"answer": 42})
    (command,) = record["commands"]
    assert {"commit", "versions", "device", "gpus", "started", "seconds"} <= command.keys()
    assert "is 42." in (tmp_path / f"{QUICK.file}.md").read_text()
    assert "## The answer" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("forked")
def test_other_code_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Report(tmp_path, 10, dry=True).run([QUICK])
    monkeypatch.setattr(running, "sources", list)
    Report(tmp_path, 10, dry=True).run([QUICK])
    assert runs(tmp_path / "work" / QUICK.file) == 2


@pytest.mark.usefixtures("forked")
def test_another_budget_trains_again_and_measures_nothing_else_again(tmp_path: Path) -> None:
    for budget in (10, 20):
        Report(tmp_path, budget, dry=True).run([QUICK, TRAINING])
    assert runs(tmp_path / "work" / QUICK.file) == 1
    assert runs(tmp_path / "work" / TRAINING.file) == 2


@pytest.mark.usefixtures("forked")
def test_a_failing_stage_records_its_error_and_the_next_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Report(tmp_path, 10, dry=True).run([FAILING, QUICK]) == 1
    record = result(tmp_path, FAILING)
    assert record["state"] == "failed"
    assert record["error"].rstrip().endswith("RuntimeError: an illegal | memory access")
    assert record["result"] == {"half": "measured"}
    assert "an illegal" in (tmp_path / f"{FAILING.file}.md").read_text()
    assert result(tmp_path, QUICK)["state"] == "done"
    assert "failed: RuntimeError: an illegal / memory access |" in (tmp_path / "report.md").read_text()
    assert "RuntimeError" in capsys.readouterr().err
    # It is tried again, and what was done is not.
    assert Report(tmp_path, 10, dry=True).run([FAILING, QUICK]) == 1
    assert runs(tmp_path / "work" / QUICK.file) == 1


def test_a_stage_over_its_time_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE_S", 1.0)
    started = time.monotonic()
    assert Report(tmp_path, 0.3, dry=True).run([HANGING, QUICK]) == 1
    assert time.monotonic() - started < 60
    record = result(tmp_path, HANGING)
    assert record["state"] == "killed"
    assert "over its time" in record["error"]
    assert not alive(record["result"]["child"])
    assert f"child {record['result']['child']}" in (tmp_path / f"{HANGING.file}.md").read_text()


def test_a_hanging_stage_ends_and_is_reported_before_the_machines_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "GRACE_S", 8.0)
    monkeypatch.setattr(running, "CLOSING_S", 2.0)
    started = time.monotonic()
    report = Report(tmp_path / "out", 0.3, dry=True, archive=tmp_path / "report.tar.gz", limit=0.3)
    assert report.run([HANGING, QUICK]) == 1
    assert time.monotonic() - started < 18
    record = result(tmp_path / "out", HANGING)
    assert record["state"] == "killed"
    assert not alive(record["result"]["child"])
    assert f"{QUICK.file} | not run" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "report.tar.gz").is_file()


@pytest.mark.usefixtures("forked")
def test_a_stage_ends_before_the_machines_limit_minus_the_grace_period(tmp_path: Path) -> None:
    Report(tmp_path, 5, dry=True, limit=5).run([LONG])
    expected = 300 - running.GRACE_S - running.CLOSING_S
    assert result(tmp_path, LONG)["result"]["seconds_left"] == pytest.approx(expected, abs=5)
    # With a grace to spare the limit changes nothing.
    Report(tmp_path / "other", 8, dry=True, limit=9.5).run([LONG])
    assert result(tmp_path / "other", LONG)["result"]["seconds_left"] == pytest.approx(480, abs=5)


def test_a_budget_above_the_limit_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "out"), "--dry", "--budget", "30", "--limit", "9.5"]) == 2
    expected = "error: --budget is 30 minutes, but --limit ends the command after 9.5: give a budget of at most 9.5\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out").exists()


def test_stages_beyond_the_budget_are_reported_as_not_run(tmp_path: Path) -> None:
    assert Report(tmp_path, 0.04, dry=True).run([QUICK]) == 0
    assert not (tmp_path / f"{QUICK.file}.json").exists()
    assert "not run: 0.0 minutes are left for it, it needs 0.05" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("forked")
def test_a_stage_out_of_time_goes_on_from_its_result(tmp_path: Path) -> None:
    found = []
    for _ in range(4):
        assert Report(tmp_path, 0.5, dry=True).run([LONG]) == 0
        record = result(tmp_path, LONG)
        found.append((record["state"], record["result"]["rows"], len(record["commands"])))
    assert found == [("out of time", 1, 1), ("out of time", 2, 2), ("done", 3, 3), ("done", 3, 3)]
    for text in ((tmp_path / f"{LONG.file}.md").read_text(), (tmp_path / "report.md").read_text()):
        # When and where each of them measured.
        assert text.count("\nMeasured on ") == 3


@pytest.mark.usefixtures("forked")
def test_a_result_of_other_code_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Report(tmp_path, 0.5, dry=True).run([LONG])
    monkeypatch.setattr(running, "sources", list)
    Report(tmp_path, 0.5, dry=True).run([LONG])
    record = result(tmp_path, LONG)
    assert (record["result"]["rows"], len(record["commands"])) == (1, 1)


@pytest.mark.usefixtures("forked")
def test_an_archive_holds_the_report(tmp_path: Path) -> None:
    archive = tmp_path / "given" / "report.tar.gz"
    Report(tmp_path / "report", 10, dry=True, archive=archive).run([QUICK])
    with tarfile.open(archive) as stream:
        names = set(stream.getnames())
    assert {f"gpu-report/{name}" for name in ("report.md", f"{QUICK.file}.json", f"{QUICK.file}.md")} <= names


@pytest.mark.usefixtures("forked")
def test_a_stage_that_wrote_nothing_does_not_end_as_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Report(tmp_path, 10, dry=True).run([FAILING])
    monkeypatch.setattr(running, "in_a_group", lambda *_: -11)
    assert Report(tmp_path, 10, dry=True).run([FAILING]) == 1
    record = result(tmp_path, FAILING)
    assert (record["state"], record["result"]) == ("killed", {"half": "measured"})
    assert "exit code -11" in record["error"]


def test_an_archive_replaces_what_a_killed_command_left_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / "report.md").write_text("# GPU report\n")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / ".report.tar.gz.partial").write_bytes(b"half of an arch")
    pack(folder, tmp_path / "given" / "report.tar.gz")
    assert [path.name for path in (tmp_path / "given").iterdir()] == ["report.tar.gz"]
    with tarfile.open(tmp_path / "given" / "report.tar.gz") as stream:
        assert stream.getnames() == ["gpu-report", "gpu-report/report.md"]


@pytest.mark.usefixtures("forked")
def test_a_command_first_reports_what_an_interrupted_one_measured(tmp_path: Path) -> None:
    folder, archive = tmp_path / "report", tmp_path / "report.tar.gz"
    assert Report(folder, 0.5, dry=True).run([LONG]) == 0
    results = Results(folder, LONG.file)
    record = results.read()
    assert record is not None
    results.write(record | {"state": "running"}, results.markdown.read_text())
    (folder / "report.md").write_text("older")
    (folder / ".report.md.123.partial").write_text("half")
    assert Report(folder, 0.5, dry=True, archive=archive).run([]) == 0
    assert f"{LONG.file} | killed: its command was interrupted |" in (folder / "report.md").read_text()
    assert "1 rows." in (folder / "report.md").read_text()
    assert not list(folder.glob("*.partial"))
    with tarfile.open(archive) as stream:
        assert "gpu-report/report.md" in stream.getnames()


def test_two_commands_do_not_write_the_same_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock(tmp_path):
        assert main(["--output", str(tmp_path), "--dry", "--stages", "a"]) == 2
    assert "is being written by process" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.md"))


@pytest.mark.parametrize("budget", [0.5, 1, 4, 9.5, 10, 30, 240])
def test_shares_fill_the_budget_from_the_most_valuable_on(budget: float) -> None:
    stages = chosen(None)
    given = shares(stages, budget)
    reached = [given[stage.letter] > 0 for stage in stages]
    assert reached == sorted(reached, reverse=True)
    assert all(given[stage.letter] >= stage.least for stage, got in zip(stages, reached, strict=True) if got)
    assert sum(given.values()) == pytest.approx(budget if any(reached) else 0)
    assert all(reached) == (budget >= sum(stage.least for stage in stages))


def test_stages_are_chosen_by_letters_in_order_of_value() -> None:
    assert [stage.letter for stage in chosen("f,e,a")] == ["a", "e", "f"]
    assert len(STAGES) <= 7
    with pytest.raises(UserError, match=r"'x'.*a \(correctness\).*a,d"):
        chosen("a,x")


def test_without_a_gpu_only_a_dry_run_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "out"), "--dry", "--budget", "0"]) == 2
    assert "--budget is 0 minutes" in capsys.readouterr().err
    monkeypatch.setattr("benchmarks.gpu_report.__main__.NEEDED", ("torch", "no_such_package"))
    assert main(["--output", str(tmp_path / "out")]) == 2
    assert "has no no_such_package: use a Python that has" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--output", str(tmp_path / "out")]) == 2
    assert "no GPU is available" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
