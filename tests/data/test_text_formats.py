"""The same texts are the same documents, whatever format they are in: a .txt file, a .jsonl line or a .parquet row."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from sinks.data.corpus import find_corpus
from sinks.data.document_store import DocumentStore, validation_documents
from sinks.errors import UserError

MARK = "\ufeff"
SPECIAL = [MARK, "\r\n", "\r", "\n\n", "\u2028", "\x85", "\x00", " ", "\t", "\U0001f600", "\uffff", '"', "\\u0041"]
TEXTS = st.lists(
    st.lists(st.sampled_from(SPECIAL) | st.text(st.characters(exclude_categories=["Cs"])), max_size=4).map("".join),
    min_size=1,
    max_size=6,
)


def as_lines(folder: Path, texts: list[str | None], **options: bool) -> None:
    lines = [json.dumps({"n": n, "text": text}, **options) + "\n" for n, text in enumerate(texts)]
    (folder / "a.jsonl").write_bytes("".join(lines).encode())


def as_escaped_lines(folder: Path, texts: list[str | None]) -> None:
    as_lines(folder, texts)


def as_unescaped_lines_without_nulls(folder: Path, texts: list[str | None]) -> None:
    records = [{} if text is None else {"text": text} for text in texts]
    lines = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "a.JSONL").write_bytes(lines.encode("utf-8-sig"))


def as_columns_of(kind: pyarrow.DataType) -> Callable[[Path, list[str | None]], None]:
    def write(folder: Path, texts: list[str | None]) -> None:
        column = pyarrow.array(texts, pyarrow.string()).cast(kind)
        table = pyarrow.table({"n": list(range(len(texts))), "text": column})
        pyarrow.parquet.write_table(table, folder / "a.Parquet", row_group_size=2)

    write.__name__ = f"rows_of_{kind}"
    return write


def as_files(folder: Path, texts: list[str | None]) -> None:
    """The last text as a line: text files alone, so few, would be cut into pieces."""
    *others, last = texts
    for number, text in enumerate(others):
        (folder / f"{number}.txt").write_bytes((text or "").encode("utf-8" if text and number % 2 else "utf-8-sig"))
    (folder / "last.jsonl").write_text(json.dumps({"text": last}))


FORMATS = [
    as_escaped_lines,
    as_unescaped_lines_without_nulls,
    as_files,
    *map(as_columns_of, (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())),
    *(as_columns_of(pyarrow.dictionary(index, pyarrow.string())) for index in (pyarrow.int8(), pyarrow.int32())),
]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("examples", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_format_gives_the_same_documents_and_the_same_split(write, examples):
    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None)
    @given(TEXTS.flatmap(lambda texts: st.lists(st.sampled_from([None, *texts]), min_size=1, max_size=8)))
    def check(texts: list[str | None]) -> None:
        texts = [*texts, "first of two", "second of two"]
        expected = [text.lstrip(MARK) for text in texts if text and text.lstrip(MARK).strip()]
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "corpus").mkdir()
            write(Path(name) / "corpus", texts)
            corpus = find_corpus([f"{name}/corpus"])
            store = DocumentStore.write(corpus, Path(name) / "documents", lambda read: None)
            assert [text for _, text in corpus.documents() if text] == expected
            assert list(store.texts(range(len(expected)))) == expected
            assert len(store.hashes) + store.without_text == len(texts)

            reference = Path(name) / "reference"
            reference.mkdir()
            as_lines(reference, expected)
            same = DocumentStore.write(find_corpus([str(reference)]), Path(name) / "same", lambda read: None)
            assert store.hashes.tolist() == same.hashes.tolist()
            assert validation_documents(store.hashes, 0.5).tolist() == validation_documents(same.hashes, 0.5).tolist()

    check()


def documents(*sources: Path) -> list[str | None]:
    return [text for _, text in find_corpus([str(source) for source in sources]).documents()]


def error_of(*sources: Path) -> str:
    with pytest.raises(UserError) as caught:
        documents(*sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_rows(file: Path, values: list, kind: pyarrow.DataType | None = None) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(values, kind)}), file)
    return file


# -- byte order marks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path, name):
    file = tmp_path / name
    if name == "a.parquet":
        write_rows(file, [f"{MARK}first {MARK}", f"{MARK}  "])
    else:
        file.write_bytes((f"{MARK}first {MARK}" if name == "a.txt" else f'{MARK}{{"text": "first {MARK}"}}').encode())
    assert [text for text in documents(file) if text] == [f"first {MARK}"]


def test_no_piece_of_joined_files_begins_with_a_byte_order_mark(tmp_path):
    part = MARK + "x" * 5000 + "\n\n"
    (tmp_path / "a.txt").write_text(part * 3, encoding="utf-8")
    assert documents(tmp_path) == ["x" * 5000 + "\n\n"] * 3


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "name_of_it"),
    [("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32-le", "UTF-32"), ("utf-32-be", "UTF-32")],
)
def test_utf_16_is_named_with_its_remedy(tmp_path, name, encoding, name_of_it):
    (tmp_path / name).write_bytes((MARK + '{"text": "caf\u00e9"}\n').encode(encoding))
    assert error_of(tmp_path / name) == (
        f"{tmp_path / name} is {name_of_it}, but UTF-8 is needed: convert it with iconv -f {name_of_it} -t UTF-8"
    )


def test_a_fingerprint_of_when_marks_were_kept_is_kept_only_by_files_without_one(tmp_path):
    file = tmp_path / "a.txt"
    for content, kept in (
        (b"alpha", True),
        (MARK.encode() + b"alpha", False),
        (b"a" * (2**20 - 1) + MARK.encode(), False),
    ):
        file.write_bytes(content)
        before = hashlib.sha256(f"text {hashlib.sha256(content).hexdigest()}\n".encode()).hexdigest()
        assert (find_corpus([str(file)]).fingerprint() == before) == kept


# -- records without text --------------------------------------------------------------------------------------


def test_records_without_text_are_counted_alike(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"n": 1}\n{"text": ""}\n{"text": "\\n "}\n{"text": "one"}\n')
    write_rows(tmp_path / "b.parquet", [None, "", "\n ", "two"])
    for name in ("a.jsonl", "b.parquet"):
        found = documents(tmp_path / name)
        assert [text for text in found if text] == [{"a.jsonl": "one", "b.parquet": "two"}[name]]
        assert found.count(None) == {"a.jsonl": 4, "b.parquet": 3}[name]


def test_a_file_of_which_no_record_has_text_is_rejected_alike(tmp_path):
    lines, rows = tmp_path / "a.jsonl", write_rows(tmp_path / "b.parquet", [None, None], pyarrow.string())
    lines.write_text('{"text": null}\n{"body": "x\\ny", "a\\nb": 1}\n')
    fine = write_rows(tmp_path / "c.parquet", ["fine"])
    assert f"{lines} has no text in field 'text' of any line (line 1 has fields text): name" in error_of(lines, fine)
    assert f"{rows} has no text in column 'text' of any row: name another column" in error_of(rows, fine)


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1], None, "int64"),
        ([1], pyarrow.dictionary(pyarrow.int8(), pyarrow.int64()), "int64"),
        ([b"x"], pyarrow.binary(), "binary"),
        ([["x"]], None, "list<element: string>"),
        ([None], pyarrow.null(), "null"),
    ],
)
def test_a_column_of_something_else_than_text_is_rejected(tmp_path, values, kind, shown):
    file = write_rows(tmp_path / "a.parquet", values, kind)
    assert f"{file} has {shown} in column 'text', but text is needed: name another column" == error_of(file)


def test_a_row_that_is_not_utf8_is_rejected_as_a_line_is(tmp_path):
    """A surrogate pair as bytes: pyarrow writes and reads it unseen."""
    offsets, data = pyarrow.py_buffer(bytes([0, 0, 0, 0, 3, 0, 0, 0])), pyarrow.py_buffer(b"\xed\xa0\xbd")
    column = pyarrow.StringArray.from_buffers(1, offsets, data)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert f"{tmp_path}/a.parquet is not UTF-8 in column 'text' (invalid continuation byte)" in error_of(tmp_path)


def test_two_columns_of_the_name(tmp_path):
    table = pyarrow.table([["x"], ["y"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert error_of(tmp_path) == f"{tmp_path}/a.parquet has several columns 'text': rename the others"
