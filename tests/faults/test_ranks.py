"""Peer failures, and decisions that all ranks must share: no rank waits for one that has ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sinks.record import RunFolder
from tests.cli.small import SMALL
from tests.faults.processes import Command, callbacks, start_ranks

DDP = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]


def arguments(folder: Path, *more: str) -> list[str]:
    return ["fit", *SMALL, *DDP, "--run.dir", str(folder), *more]


def launch(launcher: list[str], arguments: list[str], seconds: float = 200) -> tuple[int, str]:
    """Exit code and output of a launcher."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "sinks", *arguments]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
    )
    return done.returncode, done.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def peer_failure_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if "reports a peer failure" in line]


STRATEGIES = {
    "ddp": [],
    "fsdp2": [
        "--trainer.strategy=sinks.parallel.strategy.Sharded",
        "--trainer.strategy.save_distributed_checkpoint=true",
    ],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_rank_ends_the_others_at_once(strategy: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = callbacks(folder, ("Kill", {"step": 5, "rank": 1}), every=2)
    command = arguments(folder, *STRATEGIES[strategy])
    ranks = start_ranks([*command, *killed], tmp_path / "log")
    assert ranks[1].wait() == -signal.SIGKILL, ranks[1].output
    assert ranks[0].wait(20) == 2, ranks[0].output
    assert_lost(ranks[0])
    assert not RunFolder(folder).finished
    again = start_ranks([*command, *callbacks(folder, every=2)], tmp_path / "again")
    assert [rank.wait() for rank in again] == [0, 0], [rank.output for rank in again]
    assert RunFolder(folder).summary()["steps"] == 6


def assert_lost(rank: Command) -> None:
    (line,) = peer_failure_lines(rank.output)
    assert line.startswith("sinks: error: rank 0 reports a peer failure (")
    assert line.endswith("the same command resumes from step00000004.ckpt")
    assert "Traceback" not in rank.output


@pytest.mark.slow
def test_a_rank_that_no_longer_answers_ends_the_others_after_the_timeout(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    timeout = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:15"]
    stopped = callbacks(folder, ("Signal", {"signum": int(signal.SIGSTOP), "step": 5, "rank": 1}), every=2)
    ranks = start_ranks([*arguments(folder, *timeout), *stopped], tmp_path / "log")
    began = time.monotonic()
    assert ranks[0].wait(90) == 2, ranks[0].output
    assert time.monotonic() - began > 15
    assert_lost(ranks[0])
    ranks[1].send(signal.SIGKILL)
    assert ranks[1].wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, []], ids=["torchrun", "Lightning"])
def test_a_killed_rank_under_a_launcher(launcher: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = callbacks(folder, ("Kill", {"step": 5, "rank": 1}), every=2)
    code, output = launch(launcher, [*arguments(folder), *killed])
    assert code == (1 if launcher else 2), output
    (line,) = peer_failure_lines(output)
    assert line.endswith("the same command resumes from step00000004.ckpt")
    assert "[rank0]" not in output
    code, output = launch(launcher, arguments(folder, "--checkpoints.interval=2"))
    assert code == 0, output
    code, output = launch(launcher, arguments(folder))
    assert code == 0, output
    assert output.count("is finished: nothing to do") == 1


def test_all_ranks_detect_a_finished_or_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start_ranks(arguments(folder), tmp_path / "first")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())
    ranks = start_ranks(arguments(folder), tmp_path / "finished")
    assert [rank.wait(60) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert "is finished: nothing to do" in ranks[0].output
    assert ranks[1].output == ""
    ranks = start_ranks(arguments(folder, "--model.optimization.lr=1"), tmp_path / "another")
    assert [rank.wait(60) for rank in ranks] == [2, 2], [rank.output for rank in ranks]
    assert all("holds a run of another configuration" in rank.output for rank in ranks)
    assert all(rank.output.count("\n") == 1 for rank in ranks)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()) == before
