"""Text as documents: the running Python's standard library, or the user's own .txt, .jsonl and .parquet files.

A document is a line of a .jsonl file, a row of a .parquet file, or a whole text file. When a corpus is fewer than
`FEW_FILES` text files, each file is cut into documents at blank lines instead, so that a split by document is
possible. Documents of white space alone are dropped.
"""

import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sinks.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".parquet")
FEW_FILES = 100
PIECE_CHARACTERS = 4096
LONGEST_PIECE = 4 * PIECE_CHARACTERS
BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Corpus:
    """Files in a fixed order, and how they become documents.

    Args:
        name: short name, part of the prepared folder's name.
        sources: as given by the user, for the manifest.
        files: files in reading order.
        skipped: number of skipped files: empty ones, and the standard library's that are not UTF-8 on purpose.
        text_field: field of a .jsonl line, column of a .parquet file.
    """

    name: str
    sources: list[str]
    files: list[Path]
    skipped: int
    text_field: str

    @property
    def in_pieces(self) -> bool:
        """Whether text files are cut at blank lines, because there are too few of them to split by file."""
        return len(self.files) < FEW_FILES and all(_is_text(file) for file in self.files)

    @property
    def unit(self) -> str:
        """What a document is, in words."""
        if self.in_pieces:
            return f"piece of a text file, cut at blank lines, about {PIECE_CHARACTERS} characters"
        suffixes = {".jsonl": "line of a .jsonl file", ".parquet": "row of a .parquet file"}
        return ", ".join(sorted({suffixes.get(file.suffix.lower(), "text file") for file in self.files}))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' contents and kinds in order; neither paths nor modification times enter."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            kind = "text" if _is_text(file) else f"{file.suffix.lower()} {self.text_field!r}"
            digest.update(f"{kind} {content}\n".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[tuple[int, str]]:
        """(bytes of its file read so far, document) for every document, in order."""
        read = 0
        for file in self.files:
            for document in _documents(file, self.text_field, self.in_pieces):
                if document.strip():
                    yield read, document
            read += file.stat().st_size


def find_corpus(sources: list[str] | None, text_field: str = "text") -> Corpus:
    """The files of the given sources in order; folders recursively, a folder's files by name before its subfolders.

    Args:
        sources: files and folders; None or empty: the standard library.
        text_field: field of a .jsonl line, column of a .parquet file.
    """
    if not sources:
        return _standard_library(text_field)
    files: list[Path] = []
    skipped = 0
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = [file for file in walk(path) if file.suffix.lower() in SUFFIXES]
            if not found:
                raise UserError(
                    f"{source} has no file that ends in {', '.join(SUFFIXES)}: give a folder of such files, "
                    "or convert yours"
                )
            kept = [file for file in found if file.stat().st_size > 0]
            skipped += len(found) - len(kept)
            files += kept
        elif not path.is_file():
            raise UserError(f"{source} is neither a file nor a folder: give the path of a text file or folder")
        elif path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{source} ends in {path.suffix or 'no suffix'!r}, but only {', '.join(SUFFIXES)} are read: convert it"
            )
        elif path.stat().st_size == 0:
            raise UserError(f"{source} is empty (0 bytes): give a file with text in it")
        else:
            files.append(path)
    if not files:
        raise UserError(f"every file in {', '.join(sources)} is empty (0 bytes): give files with text in them")
    stem = Path(sources[0]).resolve().stem if len(sources) == 1 else "corpus"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "corpus"
    return Corpus(name, list(sources), files, skipped, text_field)


def _standard_library(text_field: str) -> Corpus:
    """Source files of the running Python, without site-packages and those that are not UTF-8 on purpose."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise UserError(f"this Python has no source files at {root}: give text of your own as sources")
    files, skipped = [], 0
    for file in walk(root, without=("site-packages", "dist-packages", "__pycache__")):
        if file.suffix != ".py" or file.stat().st_size == 0:
            continue
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            skipped += 1
        else:
            files.append(file)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(f"python{version}", [f"standard library of Python {version}"], files, skipped, text_field)


def walk(root: Path, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files below a folder in a fixed order, hidden ones left out."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in without and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _is_text(file: Path) -> bool:
    return file.suffix.lower() not in (".jsonl", ".parquet")


def _documents(file: Path, text_field: str, in_pieces: bool) -> Iterator[str]:
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        yield from _lines(file, text_field)
    elif suffix == ".parquet":
        yield from _rows(file, text_field)
    else:
        text = _decode(file.read_bytes(), file)
        yield from pieces(text) if in_pieces else (text,)


def _decode(data: bytes, file: Path, position: int = 0) -> str:
    """UTF-8 text; `position` is where `data` begins in the file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 at byte {position + error.start} (0x{data[error.start]:02x}): "
            "convert it, e.g. with iconv -t UTF-8, or leave it out"
        ) from None


def _lines(file: Path, text_field: str) -> Iterator[str]:
    position = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = _decode(line, file, position)
            position += len(line)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file} line {number} is not JSON ({error.msg} at character {error.pos}): "
                    "give one JSON object per line"
                ) from None
            if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
                has = type(record).__name__
                if isinstance(record, dict):
                    has = f"fields {', '.join(sorted(record))}" if record else "no fields"
                raise UserError(
                    f"{file} line {number} has no text in field {text_field!r} (it has {has}): "
                    "name the field with text_field"
                )
            if not _encodable(record[text_field]):
                raise UserError(
                    f"{file} line {number} has half a surrogate pair in field {text_field!r}, which no UTF-8 text has: "
                    "repair the line"
                )
            yield record[text_field]


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _rows(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is not a parquet file ({error}): convert it, or leave it out") from None
    with table:
        names = table.schema_arrow.names
        if text_field not in names:
            raise UserError(
                f"{file} has no column {text_field!r} (it has {', '.join(names)}): name the column with text_field"
            )
        kind = table.schema_arrow.field(text_field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{file} has {kind} in column {text_field!r}, but text is needed: name another column")
        for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
            yield from (value for value in batch.column(0).to_pylist() if value is not None)


def pieces(text: str) -> Iterator[str]:
    """Cut a text at blank lines into pieces of about `PIECE_CHARACTERS`; joined they are the text again.

    Without a blank line in range the cut is at a line's end, and without that, after `LONGEST_PIECE`.
    """
    start = 0
    while start < len(text):
        end = min(start + LONGEST_PIECE, len(text))
        blank = BLANK_LINES.search(text, start + PIECE_CHARACTERS, end)
        if blank:
            end = blank.end()
        elif end < len(text):
            end = text.rfind("\n", start + PIECE_CHARACTERS, end) + 1 or end
        # White space alone would be dropped as an empty document: it stays with the previous piece.
        if not text[end:].strip():
            end = len(text)
        yield text[start:end]
        start = end
