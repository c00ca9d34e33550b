"""The one error a user's mistake raises, and the check of a number's range."""

import math
import operator
from typing import TypeVar

Number = TypeVar("Number", bound=float)


class UserError(ValueError):
    """A mistake of the user, in one line: the value, the limit, the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def require(
    name: str,
    value: Number,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    remedy: str,
) -> Number:
    """A number that is finite and within its limits; a null in a configuration is neither.

    Args:
        name: of the option, as the user writes it.
        value: of the option.
        at_least: smallest value.
        above: value that it must exceed.
        at_most: largest value.
        below: value that it must stay under.
        remedy: what to do instead.

    Returns:
        The value.

    Raises:
        UserError: naming the value, the limits and the remedy.
    """
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    given = {words: limit for words, limit in limits.items() if limit is not None}
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if finite and all(_HOLDS[words](value, limit) for words, limit in given.items()):
        return value
    wanted = " and ".join(f"{words} {limit}" for words, limit in given.items())
    raise UserError(f"{name} is {value}, but must be {wanted if finite and wanted else 'finite'}: {remedy}")


_HOLDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
