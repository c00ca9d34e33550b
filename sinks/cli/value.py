"""`sinks value`: one number of a finished run, for a command that depends on it."""

from pathlib import Path

from sinks.errors import UserError
from sinks.record import RunFolder


def value(run: Path, key: str, times: float = 1.0) -> None:
    """Print a number of a finished run's summary.json, to its last digit.

    Args:
        run: a finished run folder.
        key: of the number, e.g. residual_p999.
        times: a factor on it.
    """
    number = RunFolder(run).summary().get(key)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise UserError(f"{key} of {run}/summary.json is {number!r}, but a number is needed: name another key")
    print(repr(times * number))
