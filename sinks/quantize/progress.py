"""A line on a terminal for a measurement, with the time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor
from tqdm import tqdm

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
    done = 0
    with tqdm(desc=name, total=rows, unit="row", leave=False, disable=None if progress else True) as bar:

        def logits(batch: Tensor) -> Tensor:
            nonlocal done
            found, done = subject.logits(batch), done + len(batch)
            bar.total = max(rows, done)
            bar.update(len(batch))
            return found

        yield replace(subject, logits=logits)
