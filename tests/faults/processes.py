"""`sinks` commands in processes of their own, forked from one that has imported everything: a second each, not ten."""

import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import yaml

import sinks.cli.training  # noqa: F401
from sinks.cli import main, run

PATIENCE_S = 120.0
STARTED: list[BaseProcess] = []


def _child(commands: list[list[str]], environment: dict[str, str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC_", "PL_"))]:
        del os.environ[name]
    os.environ.update(environment)
    for command in commands[:-1]:
        assert run(command) == 0
    sys.exit(main(commands[-1]))


@dataclass
class Command:
    """One process.

    Args:
        process: as multiprocessing knows it.
        log: file with its standard output and errors.
    """

    process: BaseProcess
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """The exit code; -N if signal N ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.output}"
        return self.process.exitcode

    def wait_until_output_matches(self, pattern: str, seconds: float = PATIENCE_S) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            assert time.monotonic() < end, f"no output matches {pattern!r}: {self.output}"
            assert self.process.is_alive(), f"ended before {pattern!r}: {self.output}"
            time.sleep(0.02)

    def send(self, signum: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signum)


def start(
    arguments: list[str], log: Path, environment: dict[str, str] | None = None, before: Sequence[list[str]] = ()
) -> Command:
    """Start `sinks ARGUMENTS`, after other commands in the same process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sinks.cli.training", "tests.faults.processes"])
    process = context.Process(target=_child, args=([*before, arguments], environment or {}, log))
    process.start()
    STARTED.append(process)
    return Command(process, log)


def free_port(first: int = 0, last: int = 0) -> int:
    """An unused port; a random one between `first` and `last` if given."""
    for port in random.sample(range(first, last + 1), last + 1 - first):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")


def start_ranks(arguments: list[str], log: Path, ranks: int = 2, before: Sequence[list[str]] = ()) -> list[Command]:
    """Start a command as torchrun does, each rank's output in a file of its own.

    Other commands come before it in the same processes, in one process group.
    """
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [
        start(
            arguments,
            log.with_name(f"{log.name}.{rank}"),
            shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            before,
        )
        for rank in range(ranks)
    ]


def start_slurm_tasks(arguments: list[str], log: Path, extra: dict[str, str], tasks: int = 2) -> list[Command]:
    """Start a command as srun does on one node; Lightning takes the port from the job's number."""
    shared = {
        "SLURM_JOB_ID": f"7{free_port(15000, 24999) - 15000:04d}",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_NODELIST": "127.0.0.1",
    } | extra
    return [
        start(
            arguments,
            log.with_name(f"{log.name}.{task}"),
            shared | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
        )
        for task in range(tasks)
    ]


def callbacks(folder: Path, *callbacks: tuple[str, dict[str, object]], every: int = 2) -> list[str]:
    """Arguments for a checkpoint every so many steps, and for callbacks of tests.faults.parts, by class and options."""
    entries = [{"class_path": f"tests.faults.parts.{name}", "init_args": options} for name, options in callbacks]
    file = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.yaml")
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": entries}, "checkpoints": {"interval": every}}))
    return ["-c", str(file)]
