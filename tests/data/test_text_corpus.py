"""Reading files as documents, and the errors for unreadable files."""

import json
import sysconfig
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sinks.data.corpus import FEW_FILES, PIECE_CHARACTERS, find_corpus, pieces
from sinks.errors import UserError


def documents(*sources: Path, text_field: str = "text") -> list[str]:
    return [text for _, text in find_corpus([str(s) for s in sources], text_field).documents()]


def error_of(*sources: Path, text_field: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        documents(*sources, text_field=text_field)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_standard_library_is_utf8_source_without_site_packages():
    corpus = find_corpus(None)
    root = Path(sysconfig.get_paths()["stdlib"])
    assert root / "argparse.py" in corpus.files
    assert all(file.suffix == ".py" for file in corpus.files)
    assert not [file for file in corpus.files if {"site-packages", "__pycache__"} & set(file.parts)]
    assert corpus.files == find_corpus([]).files
    assert set(corpus.skipped) <= {"empty", "not UTF-8"}
    assert corpus.skipped["not UTF-8"] < 20
    assert corpus.unit == "text file"
    assert corpus.size > 5e6


def test_folders_are_read_recursively_in_a_fixed_order(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.TXT", "ignored.csv", ".hidden/x.txt", "a/empty.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else name, encoding="utf-8")
    corpus = find_corpus([str(tmp_path)])
    assert [str(file.relative_to(tmp_path)) for file in corpus.files] == ["b.txt", "a/z.txt", "a/b/c.TXT"]
    assert corpus.skipped == {"empty": 1, "other suffix": 1}


def test_lines_and_rows_are_documents(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one", "body": "uno"}\n\n{"text": "two\\n", "body": "dos"}\n', encoding="utf-8")
    rows = tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["three", None, "  "], "body": ["tres", "x", "y"]}), rows)
    assert documents(lines, rows) == ["one", "two\n", "three", None, None]
    assert documents(lines, rows, text_field="body") == ["uno", "dos", "tres", "x", "y"]
    assert find_corpus([str(lines), str(rows)]).unit == "line of a .jsonl file, row of a .parquet file"


def test_many_text_files_are_documents_and_few_are_cut(tmp_path):
    text = "para one.\n\n" * 2000
    for i in range(FEW_FILES):
        (tmp_path / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    assert documents(tmp_path) == [text] * FEW_FILES
    (tmp_path / "000.txt").unlink()
    assert len(documents(tmp_path)) > 3 * FEW_FILES
    assert "cut at blank lines" in find_corpus([str(tmp_path)]).unit


@pytest.mark.parametrize(
    "text",
    [
        "one line\n" * 4000,
        "word " * 20000,
        "x" * 50000,
        "x" * 4 * PIECE_CHARACTERS + " ",
        ("line\n" * 30 + "\n \n") * 200 + "\n" * 9000,
        "short",
        "",
    ],
)
def test_pieces_joined_are_the_text(text):
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert all(piece.strip() for piece in cut)
    assert all(len(piece) >= PIECE_CHARACTERS for piece in cut[:-1])
    assert all(len(piece.rstrip()) <= 4 * PIECE_CHARACTERS for piece in cut)


def test_pieces_end_at_blank_lines():
    cut = list(pieces(("line\n" * 50 + "\n") * 100))
    assert len(cut) > 3
    assert all(piece.endswith("line\n\n") for piece in cut)


def test_fingerprint_is_of_content_and_order_only(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root, names in ((first, ("a.txt", "b.txt")), (second, ("x.txt", "y.txt"))):
        root.mkdir()
        for name, text in zip(names, ("alpha", "beta"), strict=True):
            (root / name).write_text(text, encoding="utf-8")
    fingerprint = find_corpus([str(first)]).fingerprint()
    assert find_corpus([str(second)]).fingerprint() == fingerprint
    assert find_corpus([str(first / "b.txt"), str(first / "a.txt")]).fingerprint() != fingerprint
    (first / "a.txt").write_text("alphA", encoding="utf-8")
    assert find_corpus([str(first)]).fingerprint() != fingerprint


def test_missing_source(tmp_path):
    message = error_of(tmp_path / "nowhere")
    assert message.startswith(f"{tmp_path}/nowhere is neither a file nor a folder: give")


def test_other_suffix(tmp_path):
    (tmp_path / "a.csv").write_text("x", encoding="utf-8")
    assert "ends in '.csv', but only .txt, .jsonl, .parquet are read: convert it" in error_of(tmp_path / "a.csv")


def test_folder_without_text_files(tmp_path):
    (tmp_path / "a.csv").write_text("x", encoding="utf-8")
    assert f"{tmp_path} has no file that ends in .txt, .jsonl, .parquet: give" in error_of(tmp_path)


def test_empty_files(tmp_path):
    (tmp_path / "a.txt").touch()
    assert error_of(tmp_path / "a.txt") == f"{tmp_path}/a.txt is empty (0 bytes): give a file with text in it"
    assert f"every file in {tmp_path} is empty" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_not_utf8_names_the_byte(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "caf\xc3\xa9"}\n{"text": "caf\xe9"}\n')
    assert f"{name} is not UTF-8 at byte 31 (0xe9): convert it" in error_of(tmp_path / name)


def write_lines(folder: Path, *lines: str) -> Path:
    (folder / "a.jsonl").write_text("\n".join(['{"text": "fine"}', *lines]), encoding="utf-8")
    return folder / "a.jsonl"


def test_line_that_is_no_json(tmp_path):
    file = write_lines(tmp_path, "{oops}")
    message = error_of(file)
    assert message.startswith(f"{file} line 2 is not a JSON object (Expecting property name")
    assert message.endswith("give one JSON object per line")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "it is list"),
        ("null", "it is NoneType"),
        ("9" * 5000, "Exceeds the limit"),
        ("[" * 10**5, "maximum recur"),
    ],
)
def test_line_that_is_no_object(tmp_path, line, reason):
    file = write_lines(tmp_path, line)
    assert error_of(file).startswith(f"{file} line 2 is not a JSON object ({reason}")


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), (0.5, "float"), (False, "bool"), ([], "list"), ({}, "dict")])
def test_line_with_something_else_than_text(tmp_path, value, kind):
    file = write_lines(tmp_path, json.dumps({"text": value}))
    message = f"{file} line 2 has {kind} in field 'text', but text is needed: name another field with text_field"
    assert error_of(file) == message


def test_lines_of_which_none_has_the_field(tmp_path):
    file = write_lines(tmp_path)
    assert error_of(file, text_field="body") == (
        f"{file} has no text in field 'body' of any line (line 1 has fields text): name the field with text_field"
    )


def test_line_with_half_a_surrogate_pair(tmp_path):
    file = write_lines(tmp_path, json.dumps({"text": "\ud83d"}))
    assert f"{file} line 2 has half a surrogate pair in field 'text'" in error_of(file)


def test_parquet_without_the_column(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), file)
    assert f"{file} has no column 'text' (it has body, n): name the column with text_field" in error_of(file)
    assert f"{file} has int64 in column 'n', but text is needed" in error_of(file, text_field="n")


def test_file_that_is_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text("hello", encoding="utf-8")
    assert f"{tmp_path}/a.parquet is not a parquet file, or damaged (" in error_of(tmp_path / "a.parquet")
