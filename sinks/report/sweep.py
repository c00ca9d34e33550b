"""Variants along the axes of an ablation: loss and loss spikes at each value of the first axis."""

from collections.abc import Mapping, Sequence

from sinks.report.outcomes import LOSS, Comparison, VariantResult
from sinks.report.tables import LOSS_COLUMN, NONE, SPIKES_COLUMN, Column, Table
from sinks.report.wording import listed
from sinks.stats.paired import Paired, pooled_sd, smallest_effect

NOTE = (
    "Mean and half range over the seeds that did not diverge, at each value of the first axis: a row for each variant "
    "and value of the others. A difference within the half ranges is none, and one seed has no half range."
)

DEVIATION = "Standard deviation of a paired loss difference, and the smallest difference that so many seeds see"


def tables(comparison: Comparison) -> list[tuple[str, Table]]:
    """Heading and table of each measure that the runs have; empty unless variants share a row."""
    axis, rows = _rows(comparison)
    if all(len(points) < 2 for points in rows.values()):
        return []
    values = list(dict.fromkeys(value for points in rows.values() for value in points))
    headings = ["variant", *(f"{axis} {value}" for value in values)]
    found = [
        (
            column.heading.capitalize(),
            Table(headings, [[name, *(_cell(points.get(v), column) for v in values)] for name, points in rows.items()]),
        )
        for column in (LOSS_COLUMN, SPIKES_COLUMN)
        if any(column.key in result.spreads for points in rows.values() for result in points.values())
    ]
    differences = {name: [_difference(points.get(value)) for value in values] for name, points in rows.items()}
    cells = [[name, *(_sd([each]) for each in row)] for name, row in differences.items()]
    pooled = ["pooled", *(_sd(column) for column in zip(*differences.values(), strict=True))]
    if any(cell != NONE for cell in pooled[1:]):
        found.append((DEVIATION, Table(headings, [*cells, pooled])))
    return found


def sentence(comparison: Comparison) -> str:
    """Where each variant has its lowest loss, and what diverged; empty unless there are tables."""
    if not tables(comparison):
        return ""
    variants: dict[str, list[VariantResult]] = {}
    for result in comparison.results:
        if result.variant.at:
            variants.setdefault(result.variant.of, []).append(result)
    lowest = [best for points in variants.values() if len(points) > 1 and (best := _lowest(points))]
    diverged = [
        f"{result.variant.label} ({number} of {number + len(result.variant.runs)})"
        for result in comparison.results
        if (number := len(result.variant.diverged))
    ]
    named = listed(f"{best.variant.label} ({LOSS_COLUMN.mean(best)})" for best in lowest)
    ended = f"Diverged: {listed(diverged)}." if diverged else "No run diverged."
    return f"The loss of each variant is lowest at {named}. {ended}" if lowest else ended


def _rows(comparison: Comparison) -> tuple[str, Mapping[str, Mapping[str, VariantResult]]]:
    """The first axis; and name of a row -> value of that axis -> result there."""
    axis = next((name for result in comparison.results for name in result.variant.at), "")
    found: dict[str, dict[str, VariantResult]] = {}
    for result in comparison.results:
        others = {name: value for name, value in result.variant.at.items() if name != axis}
        if axis in result.variant.at:
            name = ", ".join([result.variant.of, *(f"{other} {value}" for other, value in others.items())])
            found.setdefault(name, {})[result.variant.at[axis]] = result
    return axis, found


def _lowest(points: list[VariantResult]) -> VariantResult | None:
    """The point of the lowest mean loss, of those where no run diverged."""
    known = [result for result in points if LOSS in result.spreads and not result.variant.diverged]
    return min(known, key=lambda result: result.spreads[LOSS].mean, default=None)


def _cell(result: VariantResult | None, column: Column) -> str:
    if result is None:
        return NONE
    diverged = [f"{len(result.variant.diverged)} diverged"] if result.variant.diverged else []
    return ", ".join([column.cell(result)] * bool(result.variant.runs) + diverged) or NONE


def _difference(result: VariantResult | None) -> Paired | None:
    """To the baseline of the same point, or of the ablation; None where the variant changes nothing."""
    return result.loss.difference if result and result.loss and result.loss.difference.sd else None


def _sd(found: Sequence[Paired | None]) -> str:
    """Pooled, and what the fewest seeds of them see with a power of 80 %."""
    known = [each for each in found if each is not None]
    pooled = pooled_sd(known)
    if pooled is None:
        return NONE
    return f"{pooled[0]:.2g}, {smallest_effect(pooled[0], min(each.n for each in known)):.2g}"
