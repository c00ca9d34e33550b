"""The report's tables as plain cells, and the terminal table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sinks.report.outcomes import ATTENTION, LOSS, MASKED, RESIDUAL, Comparison, VariantResult, cannot_tell
from sinks.report.paper_rows import Beside, beside
from sinks.report.spread import Spread
from sinks.stats.bootstrap import as_text
from sinks.stats.paired import Paired

PLUS_MINUS = "\u00b1"
DELTA = "\u0394"
NONE = "-"


@dataclass(frozen=True)
class Column:
    """A measure of the runs as a column.

    Args:
        key: of `VariantResult.spreads`.
        heading: in the report.
        short: in the terminal.
        digits: after the point.
        scale: factor on the number, e.g. 100 for a percentage.
    """

    key: str
    heading: str
    short: str
    digits: int
    scale: float = 1.0

    def cell(self, result: VariantResult) -> str:
        return with_half_range(result.spreads.get(self.key), self.digits, self.scale)

    def mean(self, result: VariantResult) -> str:
        return f"{result.spreads[self.key].mean:.{self.digits}f}" if self.key in result.spreads else NONE


@dataclass(frozen=True)
class Table:
    """Headings [C] and rows [N, C] of plain text; the first `text_columns` are aligned left, the others right."""

    headings: list[str]
    rows: list[list[str]]
    text_columns: frozenset[int] = frozenset({0})


LOSS_COLUMN = Column(LOSS, "validation loss", "val loss", 3)
MEASURES = [
    Column(ATTENTION, "first-token mass", "1st-token", 2),
    Column("value_norm_ratio_max_head", "value norm ratio", "value norm", 2),
    Column(RESIDUAL, "R", "R", 1),
    Column("gain_at_sink", "gain at sink", "gain@sink", 2),
]
# Beside first-token mass, where `sinks probe` measured it.
MASKED_COLUMN = Column(MASKED, f"{DELTA} loss, token 0 masked", "masked", 3)
SPIKES_COLUMN = Column("loss_spikes_per_10k", "loss spikes per 10,000 steps", "spikes", 0)
# Columns of the second table, shown only if a variant has them.
FURTHER = [
    Column("residual_max_abs", "largest |h|", "max |h|", 1),
    Column("residual_max_over_median", "max / median of the residual", "max/med", 1),
    Column("first_token_mass", "first-token mass, all heads", "1st, all", 2),
    Column("sink_ratio_0.3", "fraction of heads with a sink (> 0.3)", "sinks", 2),
    Column("learned_sink_mass", "learned-sink mass", "learned", 2),
    Column("gate_mean", "attention gate, mean", "gate", 2),
    Column("norm_gate_mean", "norm gate, mean", "norm gate", 2),
    Column("clipped_share", "values clipped, %", "clipped %", 2, 100.0),
    SPIKES_COLUMN,
]


def with_half_range(spread: Spread | None, digits: int, scale: float = 1.0) -> str:
    """Mean and half range, such as `1.540 +- 0.001`; only the mean for one seed."""
    if spread is None:
        return NONE
    mean = f"{spread.mean * scale:.{digits}f}"
    return mean if spread.n == 1 else f"{mean} {PLUS_MINUS} {spread.half_range * scale:.{digits}f}"


def with_range(spread: Spread | None, digits: int) -> str:
    """Mean and range, such as `+0.002 [-0.001, +0.004]`; only the mean of one value."""
    if spread is None:
        return NONE
    mean = f"{spread.mean:+.{digits}f}"
    return mean if spread.n == 1 else f"{mean} [{spread.low:+.{digits}f}, {spread.high:+.{digits}f}]"


def with_interval(difference: Paired | None, digits: int) -> str:
    """Mean and 95 % interval of a difference, such as `+0.002 [-0.001, +0.004]`; only the mean of one seed."""
    if difference is None:
        return NONE
    return as_text({"mean": difference.mean, "low": difference.low, "high": difference.high}, digits)


def remark(result: VariantResult, loss: bool = True) -> str:
    """Caveats on the numbers: no effect, diverged, unfinished, no validation, and what the losses show."""
    variant, remarks = result.variant, []
    if result.variant.against and result.baseline:
        remarks.append(f"compared with: {result.baseline.variant.short}")
    if result.no_effect:
        remarks.append("no effect")
    if variant.diverged:
        remarks.append("diverged" if not variant.runs else f"{len(variant.diverged)} diverged")
    if variant.unfinished:
        remarks.append(f"{len(variant.unfinished)} unfinished")
    if variant.missing:
        remarks.append(f"{len(variant.missing)} not run")
    if result.changes[LOSS] == "not measured":
        remarks.append("no validation")
    elif loss and result.changes[LOSS] in ("higher", "lower"):
        remarks.append(f"loss {result.changes[LOSS]}")
    elif loss and result.changes[LOSS] == "cannot tell":
        remarks.append(cannot_tell(result))
    return ", ".join(remarks)


def measures(comparison: Comparison) -> list[Column]:
    """`MEASURES`, and beside first-token mass what the loss owes to it, if any variant has that."""
    known = any(MASKED in result.spreads for result in comparison.results)
    return [MEASURES[0], *([MASKED_COLUMN] if known else []), *MEASURES[1:]]


def results(comparison: Comparison) -> Table:
    """One row per variant: loss and the measures of its sinks, over the seeds that did not diverge."""
    shown = measures(comparison)
    rows = [
        [
            result.variant.label,
            str(len(result.variant.runs)),
            LOSS_COLUMN.cell(result),
            with_interval(result.loss.difference if result.loss else None, 4),
            NONE if result.loss is None or result.loss.visible is None else f"{result.loss.visible:.2g}",
            *(column.cell(result) for column in shown),
            remark(result),
        ]
        for result in comparison.results
    ]
    paired = [f"{DELTA} loss, paired", f"smallest visible {DELTA} loss"]
    columns = [LOSS_COLUMN.heading, *paired, *(column.heading for column in shown)]
    return Table(["variant", "seeds", *columns, "remark"], rows, frozenset({0, len(columns) + 2}))


def further(comparison: Comparison) -> Table | None:
    """One row per variant: what only some variants have, such as gates, learned sinks and clips."""
    columns = [column for column in FURTHER if any(column.key in result.spreads for result in comparison.results)]
    rows = [[r.variant.label, *(column.cell(r) for column in columns)] for r in comparison.results]
    return Table(["variant", *(column.heading for column in columns)], rows) if columns else None


RECIPE = [replace(LOSS_COLUMN, heading="loss"), *(column for column in MEASURES if column.short != "value norm")]


PAPER_HEADINGS = [
    "largest |h| over its reference's: paper",
    "largest |h| over its reference's: here",
    f"{DELTA} loss to its reference: paper",
    f"{DELTA} loss to its reference: here",
]


def against(comparison: Comparison) -> Table:
    """One row per variant: the paper's expectation and row, what others published, these runs, and scratch runs."""
    known = any(result.variant.recipe for result in comparison.results)
    columns = RECIPE if known else RECIPE[1:3]
    rows_of_paper = beside(comparison)
    published = any(result.variant.public for result in comparison.results)
    headings = ["variant", "side", "the paper expects", "verdict", *(["public result"] if published else [])]
    text_columns = frozenset(range(len(headings)))
    headings += PAPER_HEADINGS if rows_of_paper else []
    for column in columns:
        headings += [f"{column.heading}: here", f"{column.heading}: earlier recipe"] if known else [column.heading]
    rows = []
    for result in comparison.results:
        variant = result.variant
        row = [
            variant.label,
            NONE if variant.side in ("none", "unknown") else variant.side,
            variant.paper or NONE,
            f"{result.outcome}: {result.reason}" if result.reason else result.outcome or NONE,
        ]
        row += [variant.public or NONE] if published else []
        row += _paper_cells(rows_of_paper.get(variant.name)) if rows_of_paper else []
        for column in columns:
            row.append(column.mean(result))
            if known:
                row.append(
                    NONE if (before := variant.recipe.get(column.key)) is None else f"{before:.{column.digits}f}"
                )
        rows.append(row)
    return Table(headings, rows, text_columns)


def _paper_cells(found: Beside | None) -> list[str]:
    if found is None or found.reference is None:
        return [NONE] * len(PAPER_HEADINGS)
    ratios = Spread.of(found.ratios)
    return [
        NONE if found.outliers is None else f"{found.outliers:.2f}",
        with_half_range(ratios, 2),
        NONE if found.loss_difference is None else f"{found.loss_difference:+.3f}",
        with_interval(found.loss.difference if found.loss else None, 4),
    ]


def diverged(comparison: Comparison) -> Table | None:
    """Diverged runs, one per row: how far they got."""
    rows = [
        [
            result.variant.label,
            run.seed_name,
            str(run.summary.get("steps", NONE)),
            *(
                NONE if (value := run.value(key)) is None else f"{value:.{digits}f}"
                for key, digits in (("train_loss", 3), ("val_loss", 3), ("residual_max_abs", 1))
            ),
        ]
        for result in comparison.results
        for run in result.variant.diverged
    ]
    headings = ["variant", "seed", "steps", "last training loss", "last validation loss", "largest |h|"]
    return Table(headings, rows) if rows else None


def terminal(comparison: Comparison, width: int = 120) -> str:
    """The results in aligned ASCII; the least important columns are dropped until it fits `width`."""
    cells: list[tuple[str, Callable[[VariantResult], str]]] = [
        ("variant", lambda r: r.variant.name if len(r.variant.name) <= 30 else r.variant.name[:27] + "..."),
        ("seeds", lambda r: str(len(r.variant.runs))),
        (LOSS_COLUMN.short, LOSS_COLUMN.cell),
        ("d loss ", _starred),
        *((column.short, column.cell) for column in measures(comparison)),
        ("verdict", lambda r: r.outcome.replace("as the paper expects", "as expected")),
        ("remark", lambda r: remark(r, loss=False)),
    ]
    droppable = ["value norm", "gain@sink", "seeds", "verdict", "d loss ", "masked", "remark"]
    filled = {heading for heading, cell in cells if any(cell(r).strip(" -") for r in comparison.results)}
    cells = [cell for cell in cells if cell[0] in filled or cell[0] == "variant"]
    while True:
        rows = [[heading for heading, _ in cells], *([cell(r) for _, cell in cells] for r in comparison.results)]
        left = {i for i, (heading, _) in enumerate(cells) if heading in ("variant", "verdict", "remark")}
        lines = aligned(rows, left)
        if max(map(len, lines)) <= width or not droppable:
            return "\n".join(lines)
        drop = droppable.pop(0)
        cells = [cell for cell in cells if cell[0] != drop]


def _starred(result: VariantResult) -> str:
    """The paired loss difference, with a star if its sign is stated."""
    if result.loss is None:
        return NONE + " "
    return f"{result.loss.difference.mean:+.3f}" + ("*" if result.loss.call in ("higher", "lower") else " ")


def aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Rows of text as lines of equal columns, with a rule under the first."""
    rows = [[cell.replace(f" {PLUS_MINUS} ", "+-") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [line.rstrip() for line in [lines[0], "-" * max(map(len, lines)), *lines[1:]]]
