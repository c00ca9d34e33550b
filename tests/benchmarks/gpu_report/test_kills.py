"""SIGKILL of a command at random moments: the same command goes on, and ends in the report of one never killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report.run import Report, in_a_group
from benchmarks.gpu_report.stages import STAGES, Stage
from tests.benchmarks.gpu_report.processes import alive, eventually, in_session, with_variable
from tests.benchmarks.gpu_report.test_dry_run import report, started

ROWS = [Stage(letter, "rows", "tests.benchmarks.gpu_report.fakes.rows", least=0.05, weight=1) for letter in "ad"]
# A stage with a rank, which torchrun starts in a session of its own.
RANK = "import time; from sinks.parallel.process_exit import end_with_writer; end_with_writer(0); time.sleep(600)"
STAGE = f"""
import subprocess, sys, time
from sinks.parallel.process_exit import end_with_writer
end_with_writer(0)
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], start_new_session=True)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(rank.pid, worker.pid, flush=True)
time.sleep(600)
"""


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record; fails if one cannot be parsed."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("?-*.json")}


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def opened(archive: Path) -> list[str]:
    """The names in an archive; fails if it is not complete."""
    with tarfile.open(archive) as stream:
        return [member.name for member in stream.getmembers()]


def headings(folder: Path) -> list[str]:
    return [line for line in (folder / "report.md").read_text().splitlines() if line.startswith(("#", "- "))]


def in_a_session(folder: Path) -> int:
    """Start a command in a forked process with a session of its own; its process."""
    process = os.fork()
    if process == 0:
        os.setsid()
        code = 1
        with contextlib.suppress(BaseException):
            code = Report(folder / "out", 10, dry=True, archive=folder / "report.tar.gz").run(ROWS)
        os._exit(code)
    # Before it has one, it looks as if all in it had ended.
    assert eventually(lambda: os.getsid(process) == process)
    return process


def waited_for(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_command_goes_on_and_measures_no_row_twice(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    out = tmp_path / "killed" / "out"
    begun = [out / "work" / stage.file / "begun" for stage in ROWS]
    kills = 0
    while True:
        known = {
            name: record["result"].get("rows", []) for name, record in (records(out) if out.exists() else {}).items()
        }
        before = [lines(file) for file in begun]
        process = in_a_session(tmp_path / "killed")
        if kills < 6:
            some = sum(map(len, before)) + rng.randint(0, 3)
            # Fewer may be left.
            assert eventually(
                lambda some=some, session=process: (
                    sum(len(lines(file)) for file in begun) >= some or not in_session(session)
                )
            )
            time.sleep(rng.uniform(0, 0.05))
            os.kill(process, signal.SIGKILL)
        code = waited_for(process)
        assert eventually(lambda session=process: not in_session(session))
        if (tmp_path / "killed" / "report.tar.gz").exists():
            opened(tmp_path / "killed" / "report.tar.gz")
        for stage, file, earlier in zip(ROWS, begun, before, strict=True):
            again = lines(file)[len(earlier) :]
            assert not set(again) & set(known.get(stage.file, ()))
            assert len(set(again)) == len(again)
        if code != -signal.SIGKILL:
            break
        kills += 1
    assert code == 0
    assert kills > 3
    assert max(len(record["commands"]) for record in records(out).values()) > 1

    never = tmp_path / "never"
    assert waited_for(in_a_session(never)) == 0
    ended, whole = records(out), records(never / "out")
    assert {name: (record["state"], record["result"]) for name, record in ended.items()} == {
        name: (record["state"], record["result"]) for name, record in whole.items()
    }
    assert headings(out) == headings(never / "out")
    assert sorted(opened(tmp_path / "killed" / "report.tar.gz")) == sorted(opened(never / "report.tar.gz"))


def started_by(log: Path) -> list[int]:
    """The processes that `STAGE` started."""
    assert eventually(lambda: log.exists() and log.read_text().endswith("\n"))
    return [int(process) for process in log.read_text().split()]


def in_the_stage(log: Path, seconds: float) -> int | None:
    with log.open("w") as stream:
        return in_a_group([sys.executable, "-c", STAGE], seconds, stream.fileno(), dict(os.environ))


def test_all_that_a_stage_started_ends_with_a_killed_command(tmp_path: Path) -> None:
    command = os.fork()
    if command == 0:
        in_the_stage(tmp_path / "log.txt", 600)
        os._exit(1)
    found = started_by(tmp_path / "log.txt")
    assert all(map(alive, found))
    os.kill(command, signal.SIGKILL)
    assert waited_for(command) == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, found)))


def test_all_that_a_stage_started_ends_with_it(tmp_path: Path) -> None:
    assert in_the_stage(tmp_path / "log.txt", 2.0) is None
    found = started_by(tmp_path / "log.txt")
    assert eventually(lambda: not any(map(alive, found)))


def rows(folder: Path, complete: bool = False) -> list[dict[str, Any]]:
    """What every stage measured, with the stage; `complete`: only what no later command may measure again."""
    found = []
    for name, record in records(folder).items():
        result = record["result"]
        for row in result.get("rows", result.get("runs", [])):
            # The baseline's row grows, and the rows of a shape belong together.
            if not complete or row.get("shape") is None or row["shape"] in result["complete"]:
                found.append({k: v for k, v in row.items() if k != "statistics_overhead"} | {"stage": name})
    return found


def named(rows: list[dict[str, Any]]) -> list[str]:
    """The rows without the numbers."""
    keys = ("stage", "case", "shape", "contestant", "features", "compiled", "kernel", "tile", "width", "name", "family")
    return sorted(str([row.get(key) for key in keys]) for row in rows)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("never-killed")
    done = report(folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_a_killed_dry_run_ends_in_the_report_of_one_never_killed(tmp_path: Path, never_killed: Path) -> None:
    rng = random.Random(0)
    marker = uuid.uuid4().hex
    kills = 0
    measured: list[dict[str, Any]] = []
    while True:
        command = started(tmp_path, "--archive", str(tmp_path / "report.tar.gz"), MARKER=marker)
        # Imports take some seconds.
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(rng.uniform(4, 25) if kills < 6 else None)
        command.kill()
        code = command.wait()
        assert eventually(lambda: not with_variable("MARKER", marker)), with_variable("MARKER", marker)
        found = records(tmp_path / "out")
        assert not [name for name, record in found.items() if record["state"] == "failed"]
        assert not [row for row in measured if row not in rows(tmp_path / "out")]
        measured = rows(tmp_path / "out", complete=True)
        if (tmp_path / "report.tar.gz").exists():
            opened(tmp_path / "report.tar.gz")
        if code != -signal.SIGKILL:
            break
        kills += 1
    assert code == 0
    assert kills > 2
    assert [record["state"] for record in found.values()] == ["done"] * len(STAGES)
    assert named(rows(tmp_path / "out")) == named(rows(never_killed))
