"""A data loader that measures how long its reader waits."""

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class TimedDataLoader(DataLoader[Any]):
    """torch's DataLoader, which adds up in `waited_s` the seconds its reader spent waiting for batches."""

    waited_s = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()
        while True:
            requested = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - requested
            yield batch
