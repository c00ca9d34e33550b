"""Docstrings of this project as reStructuredText: text, `code`, and sections such as `Args:` with their entries."""

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from textwrap import dedent

ENTRY = re.compile(r"([`\w*.{}\[\]/-]+(?:, [`\w*.{}\[\]/-]+)*): (.*)", re.DOTALL)
COLUMNS = re.compile(r"(\S+) {2,}(\S.*)")  # of aligned rows


def escaped(text: str) -> str:
    """Text whose bars, stars and trailing underscores are no markup, and `code` as a literal."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"`{piece}`" if piece.startswith("`") and len(piece) > 2 else re.sub(r"([|*\\`]|_(?!\w))", r"\\\1", piece)
        for piece in pieces
    )


def as_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, or of a part of one, as reStructuredText.

    An indented block after an empty line is code. A line that ends in a colon, with an indented block right under it,
    is the heading of entries. Other blocks are paragraphs; if lines hang, each line that does not is an entry.
    """
    found: list[str] = []
    for block in re.split(r"\n\s*\n", dedent("\n".join(lines)).strip("\n")):
        rows = block.split("\n")
        if rows[0].startswith(" "):
            found += ["::", "", *(f"   {row}" for row in rows), ""]
            continue
        if len(rows) > 1 and all(columns := [COLUMNS.match(row) for row in rows]):
            found += [*(f"- **{escaped(c[1])}**: {escaped(c[2])}" for c in columns if c), ""]
            continue
        headings = [i for i, (row, below) in enumerate(pairwise(rows)) if row.endswith(":") and _hangs(row, below)]
        found += _text(rows[: headings[0]] if headings else rows)
        for start, end in zip(headings, [*headings, len(rows)][1:], strict=True):
            below = list(takewhile(lambda row: row.startswith(" "), rows[start + 1 : end]))
            entries = dedent("\n".join(below)).split("\n")
            found += [f"**{escaped(rows[start][:-1])}**", "", *_text(entries, bool(ENTRY.match(entries[0])))]
            found += _text(rows[start + 1 + len(below) : end])
    return found


def _hangs(row: str, below: str) -> bool:
    return below.startswith(" ") and not row.startswith(" ")


def _text(rows: Sequence[str], entries: bool = False) -> list[str]:
    """A paragraph, or a list of entries if some lines hang."""
    if not rows:
        return []
    if not entries and not any(row.startswith(" ") for row in rows):
        listed = all(row.startswith("- ") for row in rows)
        return [*(f"- {escaped(r[2:])}" for r in rows), ""] if listed else [escaped(" ".join(rows)), ""]
    items: list[str] = []
    for row in rows:
        if row.startswith(" ") and items:
            items[-1] += f" {row.strip()}"
        else:
            items.append(row.strip())
    return [*map(_item, items), ""]


def _item(text: str) -> str:
    entry = ENTRY.match(text)
    return f"- **{escaped(entry[1].replace('`', ''))}**: {escaped(entry[2])}" if entry else f"- {escaped(text)}"
