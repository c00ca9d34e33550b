"""A verdict on a claim with its reason, and one verdict of several."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Verdict = Literal["supported", "supported in part", "contradicted", "no effect", "cannot tell"]


class Result(NamedTuple):
    """A verdict and its reason.

    Args:
        verdict: on a claim.
        text: the numbers that it comes from.
        below: of "cannot tell": the loss difference below which these runs see nothing, if losses decide.
    """

    verdict: Verdict
    text: str
    below: float | None = None


def combine(results: Iterable[Result]) -> tuple[Verdict, float | None]:
    """One verdict of several: "supported in part" if they disagree; what decides nothing does not count."""
    found = list(results)
    known = {result.verdict for result in found} - {"cannot tell", "no effect"}
    if known:
        return ("supported in part" if len(known) > 1 else known.pop()), None
    undecided = [result for result in found if result.verdict == "cannot tell"]
    if found and not undecided:
        return "no effect", None
    return "cannot tell", max((result.below for result in undecided if result.below is not None), default=None)


def of_all(results: Iterable[Result]) -> Result:
    """The combined verdict of several, with all their numbers."""
    found = list(results)
    verdict, below = combine(found)
    return Result(verdict, "; ".join(result.text for result in found) + ".", below)
