"""The report's tables, as plain cells; and the one that fits a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sinks.report.ablation import Ablation, Variant
from sinks.report.outcomes import loss_change, outcome
from sinks.report.spread import Spread

PLUS_MINUS = "\u00b1"
DELTA = "\u0394"
NONE = "-"


@dataclass(frozen=True)
class Column:
    """A measure of summary.json as a column.

    Args:
        key: summary key.
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

    def cell(self, variant: Variant) -> str:
        return with_half_range(variant.spread(self.key), self.digits, self.scale)


@dataclass(frozen=True)
class Table:
    """Headings [C] and rows [N, C] of plain text; the first `text_columns` are aligned left, the others right."""

    headings: list[str]
    rows: list[list[str]]
    text_columns: frozenset[int] = frozenset({0})


LOSS = Column("val_loss", "validation loss", "val loss", 3)
MEASURES = [
    Column("first_token_mass_max_head", "first-token mass", "1st-token", 2),
    Column("value_norm_ratio_max_head", "value norm ratio", "value norm", 2),
    Column("residual_sink_score", "R", "R", 1),
    Column("gain_at_sink", "gain at sink", "gain@sink", 2),
]
# Of the second table; shown only where a variant has them.
FURTHER = [
    Column("residual_max_over_median", "max / median of the residual", "max/med", 1),
    Column("first_token_mass", "first-token mass, all heads", "1st, all", 2),
    Column("sink_ratio_0.3", "share of heads with a sink (> 0.3)", "sinks", 2),
    Column("learned_sink_mass", "learned-sink mass", "learned", 2),
    Column("gate_mean", "attention gate, mean", "gate", 2),
    Column("norm_gate_mean", "norm gate, mean", "norm gate", 2),
    Column("clipped_share", "values clipped, %", "clipped %", 2, 100.0),
]


def with_half_range(spread: Spread | None, digits: int, scale: float = 1.0) -> str:
    """Mean and half range, such as `1.540 +- 0.001`; the mean alone of one seed."""
    if spread is None:
        return NONE
    mean = f"{spread.mean * scale:.{digits}f}"
    return mean if spread.n == 1 else f"{mean} {PLUS_MINUS} {spread.half_range * scale:.{digits}f}"


def with_range(spread: Spread | None, digits: int) -> str:
    """Mean and range, such as `+0.002 [-0.001, +0.004]`."""
    if spread is None:
        return NONE
    mean = f"{spread.mean:+.{digits}f}"
    return mean if spread.n == 1 else f"{mean} [{spread.low:+.{digits}f}, {spread.high:+.{digits}f}]"


def remark(ablation: Ablation, variant: Variant, loss: bool = True) -> str:
    """What a reader must know before the numbers: no effect, diverged, unfinished, loss within noise."""
    remarks = []
    if variant.no_effect:
        remarks.append("no effect")
    if variant.diverged:
        remarks.append("diverged" if not variant.runs else f"{len(variant.diverged)} diverged")
    if variant.unfinished:
        remarks.append(f"{len(variant.unfinished)} unfinished")
    if variant.missing:
        remarks.append(f"{len(variant.missing)} not run")
    call = loss_change(ablation, variant)
    if loss and call != "one seed":
        remarks.append(f"loss {call}")
    return ", ".join(remarks)


def results(ablation: Ablation) -> Table:
    """One row per variant: loss and the four measures of its sinks, over the seeds that did not diverge."""
    rows = [
        [
            variant.label,
            str(len(variant.runs)),
            LOSS.cell(variant),
            with_range(ablation.paired(variant), 3),
            *(column.cell(variant) for column in MEASURES),
            remark(ablation, variant),
        ]
        for variant in ablation.variants
    ]
    headings = ["variant", "seeds", LOSS.heading, f"{DELTA} loss, paired", *(c.heading for c in MEASURES), "remark"]
    return Table(headings, rows, frozenset({0, len(headings) - 1}))


def further(ablation: Ablation) -> Table | None:
    """One row per variant: what only some variants have, such as gates, learned sinks and clips."""
    columns = [column for column in FURTHER if any(variant.spread(column.key) for variant in ablation.variants)]
    rows = [[variant.label, *(column.cell(variant) for column in columns)] for variant in ablation.variants]
    return Table(["variant", *(column.heading for column in columns)], rows) if columns else None


RECIPE = [
    ("val_loss", "loss", 3),
    ("first_token_mass_max_head", "first-token mass", 2),
    ("residual_sink_score", "R", 1),
    ("gain_at_sink", "gain at sink", 2),
]


def against(ablation: Ablation) -> Table:
    """One row per variant: what the paper expects, what is measured here, what earlier scratch runs measured."""

    def here(variant: Variant, key: str, digits: int) -> str:
        spread = variant.spread(key)
        return NONE if spread is None else f"{spread.mean:.{digits}f}"

    def before(variant: Variant, key: str, digits: int) -> str:
        value = variant.recipe.get(key)
        return NONE if value is None else f"{value:.{digits}f}"

    known = any(variant.recipe for variant in ablation.variants)
    pairs = RECIPE if known else RECIPE[1:3]
    headings = ["variant", "side", "the paper expects", "verdict"]
    for _, name, _ in pairs:
        headings += [f"{name}: here", f"{name}: earlier recipe"] if known else [name]
    rows = []
    for variant in ablation.variants:
        verdict, why = outcome(ablation, variant)
        row = [
            variant.label,
            NONE if variant.side in ("none", "unknown") else variant.side,
            variant.paper or NONE,
            f"{verdict}: {why}" if why else verdict or NONE,
        ]
        for key, _, digits in pairs:
            row.append(here(variant, key, digits))
            if known:
                row.append(before(variant, key, digits))
        rows.append(row)
    return Table(headings, rows, frozenset(range(4)))


def diverged(ablation: Ablation) -> Table | None:
    """Diverged runs, one a row: how far they came."""
    rows = [
        [
            variant.label,
            str(run.seed),
            str(run.summary.get("steps", NONE)),
            *(
                NONE if (value := run.value(key)) is None else f"{value:.{digits}f}"
                for key, digits in (("train_loss", 3), ("val_loss", 3), ("residual_max_abs", 1))
            ),
        ]
        for variant in ablation.variants
        for run in variant.diverged
    ]
    headings = ["variant", "seed", "steps", "last training loss", "last validation loss", "largest |h|"]
    return Table(headings, rows) if rows else None


def terminal(ablation: Ablation, width: int = 120) -> str:
    """The results in plain ASCII, aligned; the least important columns are left out until it fits `width`."""
    cells: list[tuple[str, Callable[[Variant], str]]] = [
        ("variant", lambda v: v.name if len(v.name) <= 30 else v.name[:27] + "..."),
        ("seeds", lambda v: str(len(v.runs))),
        (LOSS.short, LOSS.cell),
        ("d loss ", lambda v: _starred(ablation, v)),
        *((column.short, column.cell) for column in MEASURES),
        ("verdict", lambda v: outcome(ablation, v)[0].replace("as the paper expects", "as expected")),
        ("remark", lambda v: remark(ablation, v, loss=False)),
    ]
    droppable = ["value norm", "gain@sink", "seeds", "verdict", "d loss ", "remark"]
    said = {heading for heading, cell in cells if any(cell(v).strip(" -") for v in ablation.variants)}
    cells = [cell for cell in cells if cell[0] in said or cell[0] == "variant"]
    while True:
        rows = [[heading for heading, _ in cells], *([cell(v) for _, cell in cells] for v in ablation.variants)]
        left = {i for i, (heading, _) in enumerate(cells) if heading in ("variant", "verdict", "remark")}
        lines = _aligned(rows, left)
        if max(map(len, lines)) <= width or not droppable:
            return "\n".join(lines)
        drop = droppable.pop(0)
        cells = [cell for cell in cells if cell[0] != drop]


def _starred(ablation: Ablation, variant: Variant) -> str:
    """The paired loss difference, with a star where it is more than noise."""
    difference = ablation.paired(variant)
    if difference is None:
        return NONE + " "
    return f"{difference.mean:+.3f}" + ("*" if loss_change(ablation, variant) in ("higher", "lower") else " ")


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
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
