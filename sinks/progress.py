"""A live line on a terminal for a long job, with the time left; nothing where standard error is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def live(
    what: str, total: int, unit: str = "row", shown: bool = True, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show how far a job is, inside the `with` block.

    Args:
        what: is done.
        total: number of units; a job that does more has its total raised.
        unit: of the count.
        shown: whether to show it at all.
        done: units that were done before.

    Yields:
        A function that takes how many more units are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit}s,"),
        TimeRemainingColumn(compact=True), TextColumn("left"),
    )  # fmt: skip
    visible = shown and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible) as progress:
        task = progress.add_task(what, total=total, completed=done)

        def advance(count: int) -> None:
            progress.advance(task, count)
            state = progress.tasks[0]
            if state.total is not None and state.completed > state.total:
                progress.update(task, total=state.completed)

        yield advance


def so_far(advance: Callable[[int], None]) -> Callable[[int], None]:
    """The same for a job that says how many units are done so far, in place of how many more."""
    done = 0

    def reach(count: int) -> None:
        nonlocal done
        advance(count - done)
        done = count

    return reach
