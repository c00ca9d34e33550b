"""Texts of one file, the same whatever its format: a .txt file's, a .jsonl line's, a .parquet row's.

A record without text (the field is null or missing) is None. A file with records of which none has text is rejected:
the field's name is probably wrong.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sinks.data.files import reading
from sinks.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".parquet")
BYTE_ORDER_MARK = "\ufeff"
# UTF-32 first: its little-endian mark begins with that of UTF-16.
OTHER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def is_text(file: Path) -> bool:
    """Whether the whole file is one text."""
    return file.suffix.lower() not in (".jsonl", ".parquet")


def records(file: Path, text_field: str) -> Iterator[str | None]:
    """Texts of a file in order; None for a record without text.

    Args:
        file: .jsonl, .parquet, or any other name: a text file.
        text_field: field of a .jsonl line, column of a .parquet file.

    Raises:
        UserError: naming the file, and the byte, line or column, that is no text.
    """
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        yield from _lines(file, text_field)
    elif suffix == ".parquet":
        yield from _rows(file, text_field)
    else:
        with reading(file):
            data = file.read_bytes()
        yield _decode(data, file)


def _decode(data: bytes, file: Path, position: int = 0) -> str:
    """UTF-8 text without a byte order mark; `position` is where `data` begins in the file."""
    try:
        return data.decode("utf-8").lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        for encoding, marks in OTHER_MARKS.items():
            if position == 0 and data.startswith(marks):
                raise UserError(
                    f"{file} is {encoding}, but UTF-8 is needed: convert it with iconv -f {encoding} -t UTF-8"
                ) from None
        raise UserError(
            f"{file} is not UTF-8 at byte {position + error.start} (0x{data[error.start]:02x}): "
            "convert it, e.g. with iconv -f LATIN1 -t UTF-8, or leave it out"
        ) from None


def _lines(file: Path, text_field: str) -> Iterator[str | None]:
    position, first, any_text = 0, None, False
    with reading(file), file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = _decode(line, file, position)
            position += len(line)
            if not text.strip():
                continue
            record = _parse(text, file, number)
            first = first or (number, record)
            value = record.get(text_field)
            if value is not None and not isinstance(value, str):
                raise UserError(
                    f"{file} line {number} has {type(value).__name__} in field {text_field!r}, but text is needed: "
                    "name another field with text_field"
                )
            if value is not None and not _encodable(value):
                raise UserError(
                    f"{file} line {number} has half a surrogate pair in field {text_field!r}, which no UTF-8 text has: "
                    "repair the line"
                )
            any_text = any_text or value is not None
            yield value
    if first and not any_text:
        raise UserError(
            f"{file} has no text in field {text_field!r} of any line (line {first[0]} has fields {_listed(first[1])}): "
            "name the field with text_field"
        )


def _parse(text: str, file: Path, number: int) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        reason = str(error)
    else:
        if isinstance(record, dict):
            return record
        reason = f"it is {type(record).__name__}"
    raise UserError(f"{file} line {number} is not a JSON object ({reason}): give one JSON object per line")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _rows(file: Path, text_field: str) -> Iterator[str | None]:
    import pyarrow
    import pyarrow.parquet

    rows, any_text = 0, False
    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
            _check_column(file, table.schema_arrow, text_field)
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                values = batch.column(0).to_pylist()
                rows += len(values)
                any_text = any_text or any(value is not None for value in values)
                yield from values
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 in column {text_field!r} ({error.reason}): write it again from UTF-8 text"
        ) from None
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise UserError(
            f"{file} is not a parquet file, or damaged ({' '.join(str(error).split())}): "
            "write it again, or leave it out"
        ) from None
    if rows and not any_text:
        raise UserError(f"{file} has no text in column {text_field!r} of any row: name another column with text_field")


def _check_column(file: Path, schema: Any, text_field: str) -> None:
    """Reject a parquet file without exactly one text column of that name."""
    from pyarrow import types

    if text_field not in schema.names:
        raise UserError(
            f"{file} has no column {text_field!r} (it has {_listed(schema.names)}): name the column with text_field"
        )
    if schema.names.count(text_field) > 1:
        raise UserError(f"{file} has several columns {text_field!r}: rename the others")
    column = schema.field(text_field).type
    kind = column.value_type if types.is_dictionary(column) else column
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"{file} has {kind} in column {text_field!r}, but text is needed: name another column")


def _listed(names: Iterable[str]) -> str:
    """Names on one line, whatever they contain."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names) or "none"
