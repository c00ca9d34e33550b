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
    summary = RunFolder(run).summary()
    numbers = {name: number for name, number in summary.items() if type(number) in (int, float)}
    if key not in numbers:
        raise UserError(f"{run}/summary.json has no number {key!r}: name one of {', '.join(numbers)}")
    print(repr(times * numbers[key]))
