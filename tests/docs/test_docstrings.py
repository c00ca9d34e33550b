"""Docstrings as reStructuredText: code, entries and plain text, whatever signs are in them."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def as_rst(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from docstrings import as_rst

    return lambda text: "\n".join(as_rst(text.split("\n"))).rstrip("\n")


def test_signs_are_no_markup_and_code_is_literal(as_rst) -> None:
    assert as_rst("|h| * `x_` of name_, x_y") == r"\|h\| \* ``x_`` of name\_, x_y"


def test_lines_of_a_paragraph_are_joined_and_a_list_is_kept(as_rst) -> None:
    assert as_rst("One\nparagraph.\n\n- a\n- b") == "One paragraph.\n\n- a\n- b"


def test_sections_have_entries_or_text(as_rst) -> None:
    arguments = "Does.\n\nArgs:\n    a, b: of it,\n        and more: so.\n    c: [B, T]."
    assert as_rst(arguments) == "Does.\n\n**Args**\n\n- **a, b**: of it, and more: so.\n- **c**: [B, T]."
    assert as_rst("Returns:\n    A tensor [B],\n    or none.") == "**Returns**\n\nA tensor [B], or none."


def test_an_indented_block_is_code(as_rst) -> None:
    assert as_rst("Use:\n\n    a = |b|\n        c") == "Use:\n\n::\n\n       a = |b|\n           c"


def test_hanging_lines_make_entries_of_a_block(as_rst) -> None:
    assert as_rst("eps: one,\n    of two.\nkind: a or b.") == "- **eps**: one, of two.\n- **kind**: a or b."


def test_aligned_columns_are_entries(as_rst) -> None:
    assert as_rst("a.json   what *is*\nb/       more") == "- **a.json**: what \\*is\\*\n- **b/**: more"
