"""Variants along the axes of an ablation: loss and loss spikes at each value of the first axis."""

from collections.abc import Mapping

from sinks.report.outcomes import LOSS, Comparison, VariantResult
from sinks.report.tables import LOSS_COLUMN, NONE, SPIKES_COLUMN, Column, Table
from sinks.report.wording import listed

NOTE = (
    "Mean and half range over the seeds that did not diverge, at each value of the first axis: a row for each variant "
    "and value of the others. A difference within the half ranges is none, and one seed has no half range."
)


def tables(comparison: Comparison) -> list[tuple[str, Table]]:
    """Heading and table of each measure that the runs have; empty unless variants share a row."""
    rows = _rows(comparison)
    if all(len(points) < 2 for points in rows.values()):
        return []
    values = list(dict.fromkeys(value for points in rows.values() for value in points))
    axis = next(iter(_along(comparison)[0].variant.at))
    headings = ["variant", *(f"{axis} {value}" for value in values)]
    return [
        (
            column.heading.capitalize(),
            Table(
                headings,
                [[name, *(_cell(points.get(value), column) for value in values)] for name, points in rows.items()],
            ),
        )
        for column in (LOSS_COLUMN, SPIKES_COLUMN)
        if any(column.key in result.spreads for result in _along(comparison))
    ]


def sentence(comparison: Comparison) -> str:
    """Where each variant has its lowest loss, and what diverged; empty unless there are tables."""
    if not tables(comparison):
        return ""
    variants: dict[str, list[VariantResult]] = {}
    for result in _along(comparison):
        variants.setdefault(result.variant.of, []).append(result)
    lowest = [best for points in variants.values() if len(points) > 1 and (best := _lowest(points))]
    diverged = [
        f"{result.variant.label} ({number} of {number + len(result.variant.runs)})"
        for result in _along(comparison)
        if (number := len(result.variant.diverged))
    ]
    named = listed(f"{best.variant.label} ({LOSS_COLUMN.mean(best)})" for best in lowest)
    ended = f"Diverged: {listed(diverged)}." if diverged else "No run diverged."
    return f"The loss of each variant is lowest at {named}. {ended}" if lowest else ended


def _along(comparison: Comparison) -> list[VariantResult]:
    """The results at points of axes."""
    return [result for result in comparison.results if result.variant.at]


def _rows(comparison: Comparison) -> Mapping[str, Mapping[str, VariantResult]]:
    """Name of a row -> value of the first axis -> result there."""
    found: dict[str, dict[str, VariantResult]] = {}
    for result in _along(comparison):
        (_, value), *others = result.variant.at.items()
        name = ", ".join([result.variant.of, *(f"{axis} {label}" for axis, label in others)])
        found.setdefault(name, {})[value] = result
    return found


def _lowest(points: list[VariantResult]) -> VariantResult | None:
    """The point of the lowest mean loss, of those where no run diverged."""
    known = [result for result in points if LOSS in result.spreads and not result.variant.diverged]
    return min(known, key=lambda result: result.spreads[LOSS].mean, default=None)


def _cell(result: VariantResult | None, column: Column) -> str:
    if result is None:
        return NONE
    diverged = [f"{len(result.variant.diverged)} diverged"] if result.variant.diverged else []
    return ", ".join([column.cell(result)] * bool(result.variant.runs) + diverged) or NONE
