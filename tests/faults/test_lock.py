"""Two runs that would write to one folder."""

import os
import signal
import socket
from pathlib import Path

import pytest

from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.lock import run_lock
from tests.cli.small import SMALL
from tests.faults.processes import callbacks, start


def test_the_second_run_gets_the_lock_owner_and_the_first_continues(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["fit", *SMALL, "--run.dir", str(folder)]
    first = start([*arguments, *callbacks(folder, ("Wait", {"file": str(tmp_path / "go")}))], tmp_path / "first")
    while not (folder / "metrics.jsonl").exists():
        assert first.process.is_alive(), first.output
    second = start(arguments, tmp_path / "second")
    assert second.wait() == 2, second.output
    writer = f"process {first.process.pid} on {socket.gethostname()}"
    remedy = "wait until it is done, stop it, or choose another --run.dir"
    assert second.output == f"sinks: error: {folder} is being written by {writer}: {remedy}\n"
    (tmp_path / "go").touch()
    assert first.wait() == 0, first.output
    run = RunFolder(folder)
    assert run.summary()["steps"] == 6
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 6]
    assert len(list(folder.glob("events.*"))) == 1


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["fit", *SMALL, "--run.dir", str(folder), "--data.num_workers=1"]
    killed = start([*arguments, *callbacks(folder, ("Kill", {"step": 3}))], tmp_path / "killed")
    assert killed.wait() == -signal.SIGKILL
    assert (folder / ".lock.holder").exists()
    again = start([*arguments, *callbacks(folder)], tmp_path / "again")
    assert again.wait() == 0, again.output
    assert not (folder / ".lock.holder").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot be written .*: choose another --run.dir"),
        run_lock(tmp_path / "file/run"),
    ):
        pass


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    def break_down() -> None:
        with run_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock.holder").read_text()
            with pytest.raises(UserError, match="is being written by"), run_lock(tmp_path):
                pass
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        break_down()
    with run_lock(tmp_path):
        pass
