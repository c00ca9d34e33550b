"""A line on a terminal for a measurement, with the time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from sinks.progress import live
from sinks.quantize.subject import Subject


@contextmanager
def counted(subject: Subject, name: str, rows: int, progress: bool) -> Iterator[Subject]:
    """The same subject, whose rows are counted inside the `with` block each time that the model runs over them.

    Args:
        subject: model and text.
        name: of the measurement.
        rows: over which the model is to run, about; more make the line longer.
        progress: whether to show a line; without a terminal there is none.
    """
    with live(name, rows, shown=progress) as advance:

        def logits(batch: Tensor) -> Tensor:
            found = subject.logits(batch)
            advance(len(batch))
            return found

        yield replace(subject, logits=logits)
