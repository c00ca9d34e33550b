"""One line for a whole grid: a live bar on a terminal, a line per finished run elsewhere."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from sinks.cli.schedule import PlannedRun, last_step

# Of the steps to do, so many must be done before their pace says when the others will be.
PACE_FROM = 0.03


def duration(seconds: float) -> str:
    """In the unit that a reader would use."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class GridProgress:
    """Steps done of all runs, and from their pace the time left.

    Args:
        runs: of the grid, finished ones included.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self.runs = runs
        self._steps = {run.folder: run.steps if run.done else 0 for run in runs}
        self._ended = sum(run.done for run in runs)
        self._running: list[PlannedRun] = []
        self._first, self._since = sum(self._steps.values()), time.monotonic()
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),  # kept out of log files
        )
        self._task = self._live.add_task("", total=self._total, completed=self._first)
        self._live.start()
        self._refreshed = -1.0

    def started(self, run: PlannedRun) -> None:
        self._running.append(run)
        # What an interrupted run has behind it was not done at this pace.
        self._steps[run.folder] = last_step(run)
        self._first += self._steps[run.folder]

    def ended(self, run: PlannedRun, failure: str | None) -> None:
        if run in self._running:
            self._running.remove(run)
        self._ended += 1
        self._read([run])
        if failure is not None:
            self._print(f"{run.name} failed: {failure}; the same command tries it again")
        elif self._live.disable:
            self._print(f"{run.name} finished, {self.line()}")

    def refresh(self) -> None:
        now = time.monotonic()
        if not self._live.disable and now - self._refreshed >= 1:
            self._refreshed = now
            self._read(self._running)
            self._live.update(self._task, completed=sum(self._steps.values()), description=self.line())

    def close(self) -> None:
        self._live.stop()

    def line(self) -> str:
        """run 7 of 33, 6 min left."""
        self._read(self._running)
        done = sum(self._steps.values())
        left = ""
        if done < self._total and done - self._first > PACE_FROM * (self._total - self._first):
            pace = (done - self._first) / (time.monotonic() - self._since)
            left = f", {duration((self._total - done) / pace)} left"
        return f"run {min(self._ended + 1, len(self.runs))} of {len(self.runs)}{left}"

    @property
    def _total(self) -> int:
        return sum(run.steps for run in self.runs)

    def _read(self, runs: Sequence[PlannedRun]) -> None:
        for run in runs:
            self._steps[run.folder] = last_step(run)

    def _print(self, line: str) -> None:
        if self._live.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._live.console.print(line, markup=False, highlight=False)
