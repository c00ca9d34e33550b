"""`sinks value`: one number of a finished run, for a command that depends on it."""

import math
from pathlib import Path

from sinks.errors import UserError, require
from sinks.record import RunFolder


def value(run: Path, key: str, times: float = 1.0) -> None:
    """Print a number of a finished run's summary.json, to its last digit.

    Args:
        run: a finished run folder.
        key: of the number, e.g. residual_p999.
        times: a factor on it.
    """
    print(repr(number(run, key, times)))


def number(run: Path, key: str, times: float = 1.0) -> float:
    """A number of a finished run's summary.json, times a factor.

    Raises:
        UserError: if there is no such number.
    """
    summary = RunFolder(run).summary()
    numbers = {name: n for name, n in summary.items() if type(n) in (int, float) and math.isfinite(n)}
    if key not in numbers:
        raise UserError(f"{run}/summary.json has no finite number {key!r}: name one of {', '.join(numbers)}")
    require("times", times, remedy="give e.g. 0.5")
    return times * numbers[key]
