"""How the sentences of a report name sinks, numbers and lists."""

from collections.abc import Iterable

from sinks.report.outcomes import ATTENTION, RESIDUAL
from sinks.report.spread import Spread

NAMES = {ATTENTION: "attention sink", RESIDUAL: "residual sink"}
NAMED = 6  # items that a list names; of more it gives the number


def short(spread: Spread) -> str:
    """The mean in three digits."""
    return f"{spread.mean:.3g}"


def listed(items: Iterable[str]) -> str:
    """`a, b and c`, or `a, x; b, y; and c` where names have commas; what is beyond `NAMED` is counted."""
    known = list(items)
    more = len(known) - NAMED
    shown = known[:NAMED] + ([f"{more} more"] if more > 0 else [])
    if len(shown) == 1:
        return shown[0]
    apart, last = ("; ", "; and ") if any(", " in item for item in shown) else (", ", " and ")
    return f"{apart.join(shown[:-1])}{last}{shown[-1]}"
