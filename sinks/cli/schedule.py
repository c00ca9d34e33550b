"""Runs side by side: each in a process of its own, forked from one that has imported everything already."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NoReturn, Protocol

from sinks.cli.value import number
from sinks.errors import UserError
from sinks.record import RunFolder

POLL_S = 1.0


@dataclass(frozen=True)
class PlannedRun:
    """A run of a grid.

    Args:
        name: of the variant and the seed, for messages.
        folder: of the run.
        steps: optimizer steps.
        arguments: of `sinks fit`.
        configs: configuration files among them.
        needs: folder of a run that must be finished before, if any.
        measured: option -> key of that run's summary.json and a factor.
    """

    name: str
    folder: Path
    steps: int
    arguments: list[str]
    configs: list[Path]
    needs: Path | None = None
    measured: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def done(self) -> bool:
        """Whether it is finished, and no configuration file is newer than its results."""
        if not self.summary.is_file():
            return False
        finished = self.summary.stat().st_mtime
        return all(file.stat().st_mtime <= finished for file in self.configs)

    def command(self) -> list[str]:
        """Arguments of `sinks`, measured options included.

        Raises:
            UserError: if the run that it needs has no such number.
        """
        if self.needs is None:
            return ["fit", *self.arguments]
        taken = [f"--{option}={number(self.needs, *source)!r}" for option, source in self.measured.items()]
        return ["fit", *self.arguments, *taken]


class Progress(Protocol):
    """What is told of each run, and again and again in between."""

    def started(self, run: PlannedRun) -> None: ...

    def ended(self, run: PlannedRun, failure: str | None) -> None: ...

    def refresh(self) -> None: ...


def run_side_by_side(runs: Sequence[PlannedRun], jobs: int, launch: str, progress: Progress) -> list[PlannedRun]:
    """Run what is not done, in order, so many at a time; what fails does not stop the others.

    Args:
        runs: in order; one that needs another comes after it.
        jobs: how many run at a time.
        launch: command in front of each run's, e.g. "srun"; then nothing is forked.
        progress: is told of all.

    Returns:
        Those that failed, or were not started because what they need failed.
    """
    context = multiprocessing.get_context("forkserver")
    if not launch:
        context.set_forkserver_preload(["sinks.cli.training"])
    waiting = [run for run in runs if not run.done]
    finished = {run.folder for run in runs} - {run.folder for run in waiting}
    failed: list[PlannedRun] = []
    running: dict[int, tuple[PlannedRun, ForkServerProcess]] = {}

    def fail(run: PlannedRun, why: str) -> None:
        failed.append(run)
        progress.ended(run, why)

    with _ended_with_this_process(running):
        while waiting or running:
            for run in list(waiting):
                if len(running) == jobs:
                    break
                if run.needs in {other.folder for other in failed}:
                    waiting.remove(run)
                    fail(run, f"{run.needs} did not finish")
                elif run.needs is None or run.needs in finished:
                    waiting.remove(run)
                    try:
                        command = run.command()
                    except UserError as error:
                        fail(run, str(error))
                        continue
                    process = context.Process(target=_run, args=(command, launch), name=run.name)
                    process.start()
                    running[process.sentinel] = run, process
                    progress.started(run)
            for sentinel in wait(list(running), timeout=POLL_S):
                run, process = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode == 0 and run.summary.is_file():
                    os.utime(run.summary)  # its configuration files are older now
                    finished.add(run.folder)
                    progress.ended(run, None)
                else:
                    fail(run, f"exit code {process.exitcode}")
            progress.refresh()
    return failed


@contextmanager
def _ended_with_this_process(running: Mapping[int, tuple[PlannedRun, ForkServerProcess]]) -> Iterator[None]:
    """End the processes when this one is told to: each saves its state first, if it is training."""

    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _run(command: list[str], launch: str) -> None:
    """In a process of its own: `sinks` with the given arguments."""
    if launch:
        sys.exit(subprocess.call([*shlex.split(launch), sys.executable, "-m", "sinks", *command]))
    from sinks.cli import main

    sys.argv = ["sinks", *command]  # what the provenance states, and launchers of further processes repeat
    sys.exit(main(command))


def last_step(run: PlannedRun) -> int:
    """How far a run is, by what it has logged."""
    if run.summary.is_file():
        return run.steps
    try:
        lines = RunFolder(run.folder).metrics()
    except (UserError, OSError):
        return 0
    return min(int(lines[-1]["step"]), run.steps) if lines else 0
