"""Processes that a test starts end with it."""

from collections.abc import Iterator

import pytest

from tests.faults.processes import STARTED


@pytest.fixture(autouse=True)
def _no_survivors() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.join()
    STARTED.clear()
