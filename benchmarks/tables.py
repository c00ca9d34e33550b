"""Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(columns: str, rows: Iterable[Sequence[Any]]) -> list[str]:
    """An empty line, then the lines of a table; short rows end in empty cells.

    Args:
        columns: their names, separated by " | ".
        rows: cells.
    """
    count = len(columns.split(" | "))
    filled = ([*map(str, row), *[""] * (count - len(row))] for row in rows)
    return ["", f"| {columns} |", "|---" * count + "|", *(f"| {' | '.join(row)} |" for row in filled)]


def number(value: float | None, form: str) -> str:
    """A formatted number, a dash for none."""
    return "-" if value is None else format(value, form)
