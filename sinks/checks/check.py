"""Every property of one variant, and the lines of the table of results."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sinks.checks.properties import PROPERTIES
from sinks.checks.sharded import sharded_step
from sinks.checks.subject import Broken, NotTried, Subject
from sinks.families import CausalLM

SHARDED = "one step under FSDP2"
NAMES = (*PROPERTIES, SHARDED)


@dataclass(frozen=True)
class Line:
    """Result of one property.

    Args:
        name: of the property.
        result: whether it holds.
        reason: of a failure, or why it was not tried.
    """

    name: str
    result: Literal["passed", "failed", "not tried"]
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.result:<9}  {self.name}" + (f": {self.reason}" if self.reason else "")


def check(make: Callable[[], CausalLM], only: Collection[str] = NAMES) -> Iterator[Line]:
    """Test the properties of every variant on one.

    Args:
        make: builds the variant, not configured, and small: a width of 16 and two layers; called many times.
        only: names of the properties; all by default.

    Yields:
        One line per property, as soon as it is known.
    """
    subject = Subject(make)
    properties = PROPERTIES | {SHARDED: sharded_step}
    for name in only:
        yield tried(name, partial(properties[name], subject))


def tried(name: str, property: Callable[[], None]) -> Line:
    """The line of one property, which raises `Broken` or `NotTried` if it does not hold or apply."""
    try:
        with _quiet():
            property()
    except NotTried as reason:
        return Line(name, "not tried", str(reason))
    except Broken as reason:
        return Line(name, "failed", str(reason))
    # Any error of a user's class is a result, and the other properties continue.
    except Exception as error:
        return Line(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return Line(name, "passed")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's messages about its own defaults, which do not belong in the table."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
