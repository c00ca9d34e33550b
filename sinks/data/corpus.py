"""Text as documents: the running Python's standard library, or the user's own .txt, .jsonl and .parquet files.

A document is a line of a .jsonl file, a row of a .parquet file, or a whole text file. When a corpus is fewer than
`FEW_FILES` text files, each file is cut into documents at blank lines instead, so that a split by document is
possible. No document begins with a byte order mark, and those of white space alone are dropped.
"""

import hashlib
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sinks.data.files import check_link, file_size, reading, walk
from sinks.data.records import BYTE_ORDER_MARK, SUFFIXES, is_text, records
from sinks.errors import UserError

FEW_FILES = 100
PIECE_CHARACTERS = 4096
LONGEST_PIECE = 4 * PIECE_CHARACTERS
LONGEST_NAME = 200
BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Corpus:
    """Files in a fixed order, and how they become documents.

    Args:
        name: short name, part of the prepared folder's name.
        sources: as given by the user, for the manifest.
        files: files in reading order.
        skipped: number of files that were found and not read, by reason.
        text_field: field of a .jsonl line, column of a .parquet file.
    """

    name: str
    sources: list[str]
    files: list[Path]
    skipped: Mapping[str, int]
    text_field: str

    @property
    def in_pieces(self) -> bool:
        """Whether text files are cut at blank lines, because there are too few of them to split by file."""
        return len(self.files) < FEW_FILES and all(is_text(file) for file in self.files)

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
        return sum(map(file_size, self.files))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' contents and kinds in order; neither paths nor modification times enter."""
        digest = hashlib.sha256()
        for file in self.files:
            content, marked = _digest(file)
            # The version says how records become documents: 1 kept byte order marks.
            if is_text(file):
                kind = "text 2" if marked else "text"
            else:
                kind = f"{file.suffix.lower()} {self.text_field!r} 2"
            digest.update(f"{kind} {content}\n".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[tuple[int, str | None]]:
        """(bytes of the files before, document) for every record in order; None for one without text."""
        read = 0
        for file in self.files:
            for text in records(file, self.text_field):
                for document in pieces(text) if self.in_pieces and text else (text,):
                    document = (document or "").lstrip(BYTE_ORDER_MARK)
                    yield read, document if document.strip() else None
            read += file_size(file)


def _digest(file: Path) -> tuple[str, bool]:
    """SHA-256 (hex) of a file, and whether a byte order mark is anywhere in it."""
    digest, marked, end = hashlib.sha256(), False, b""
    mark = BYTE_ORDER_MARK.encode()
    with reading(file), file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
            marked = marked or mark in end + block
            end = block[-len(mark) + 1 :]
    return digest.hexdigest(), marked


def find_corpus(sources: list[str] | None, text_field: str = "text") -> Corpus:
    """The files of the given sources in order; folders recursively, a folder's files by name before its subfolders.

    Args:
        sources: files and folders; None or empty: the standard library.
        text_field: field of a .jsonl line, column of a .parquet file.
    """
    if not sources:
        return _standard_library(text_field)
    files: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    for source in sources:
        path = Path(source)
        check_link(path)
        if not source or not path.exists():
            raise UserError(
                f"{source or 'an empty source'} is neither a file nor a folder: give the path of a text file or folder"
            )
        if path.is_dir():
            found = _files_of(path, skipped)
        elif path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{source} ends in {path.suffix or 'no suffix'!r}, but only {', '.join(SUFFIXES)} are read: convert it"
            )
        elif file_size(path) == 0:
            raise UserError(f"{source} is empty (0 bytes): give a file with text in it")
        else:
            found = [path]
        # A file that several links or sources lead to is read once.
        for file in found:
            files.setdefault(os.path.realpath(file), file)
    if not files:
        raise UserError(f"every file in {', '.join(sources)} is empty (0 bytes): give files with text in them")
    stem = Path(sources[0]).resolve().stem if len(sources) == 1 else "corpus"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:LONGEST_NAME] or "corpus"
    return Corpus(name, list(sources), list(files.values()), skipped, text_field)


def _files_of(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Files with text below a folder; the others are counted in `skipped`, or rejected if text may be missing."""
    found = []
    for file in walk(folder):
        check_link(file)
        if file.suffix.lower() in SUFFIXES:
            found.append(file)
        else:
            skipped["other suffix"] += 1
    if not found:
        raise UserError(
            f"{folder} has no file that ends in {', '.join(SUFFIXES)}: give a folder of such files, or convert yours"
        )
    kept = [file for file in found if file_size(file) > 0]
    if len(kept) < len(found):
        skipped["empty"] += len(found) - len(kept)
    return kept


def _standard_library(text_field: str) -> Corpus:
    """Source files of the running Python, without site-packages and those that are not UTF-8 on purpose."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise UserError(f"this Python has no source files at {root}: give text of your own as sources")
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    for file in walk(root, without=("site-packages", "dist-packages", "__pycache__")):
        if file.suffix != ".py" or not file.is_file():
            continue
        with reading(file):
            data = file.read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            skipped["not UTF-8"] += 1
            continue
        if data:
            files.append(file)
        else:
            skipped["empty"] += 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(f"python{version}", [f"standard library of Python {version}"], files, skipped, text_field)


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
