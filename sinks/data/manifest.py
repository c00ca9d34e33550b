"""Contents of a prepared folder, and their verification: litdata reads damaged chunks without an error."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sinks.data.files import reading
from sinks.errors import UserError

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.json"
CHUNK_SUFFIX = ".bin"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Split:
    """Totals of one split."""

    documents: int
    bytes: int
    tokens: int
    chunks: int


@dataclass(frozen=True)
class FileRecord:
    """Expected size and checksum of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json.

    Args:
        fingerprint: SHA-256 of the corpus and of every setting that changes the tokens.
        content: SHA-256 of the chunks' checksums in reading order, which identifies the tokens.
        sources: as given by the user.
        files: number of files read.
        skipped: number of files that were found and not read, by reason.
        unit: what a document is, in words.
        records_without_text: number of lines, rows and files with no text or white space alone, which were dropped.
        vocab_size: configured number of token ids; the tokenizer may have fewer entries.
        tokenizer_entries: entries of the trained tokenizer.
        bos: "document": `<bos>` is before every document; "none": nowhere (policy "block" adds it on reading).
        validation_share: requested fraction of documents for validation.
        splits: totals of "train" and "val".
        records: path below the folder -> size and checksum of every chunk, index and the tokenizer.
        versions: packages that made the folder.
    """

    fingerprint: str
    content: str
    sources: list[str]
    files: int
    skipped: Mapping[str, int]
    unit: str
    records_without_text: int
    vocab_size: int
    tokenizer_entries: int
    bos: Literal["none", "document"]
    validation_share: float
    splits: dict[str, Split]
    records: dict[str, FileRecord]
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        file = Path(folder) / MANIFEST_FILE
        try:
            with reading(file):
                data = file.read_bytes() if file.is_file() else None
            if data is not None:
                values = json.loads(data)
                if "skipped_files" in values:
                    # A folder from before the reasons were recorded; it has no record without text.
                    values |= {"skipped": {"empty": values["skipped_files"]}, "records_without_text": 0}
                return _typed(cls, values)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({type(error).__name__}: {error}): {_again(folder)}") from None
        raise UserError(f"{folder} has no {MANIFEST_FILE}: {_again(folder)}")


def _typed(kind: Any, value: Any) -> Any:
    """A JSON value as a type: a dataclass, list, mapping, Literal, or plain; TypeError or KeyError if it is another."""
    inner = get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _typed(hint, value[name]) for name, hint in hints.items()})  # type: ignore[operator]
    if get_origin(kind) is list and isinstance(value, list):
        return [_typed(inner[0], item) for item in value]
    if get_origin(kind) in (dict, Mapping) and isinstance(value, dict):
        return {name: _typed(inner[1], item) for name, item in value.items()}
    if value in inner or type(value) is kind:
        return value
    raise TypeError(f"{value!r} is not of type {getattr(kind, '__name__', kind)}")


def record(folder: Path, path: str) -> FileRecord:
    with (folder / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord((folder / path).stat().st_size, digest)


def verify(folder: str | Path) -> Manifest:
    """Compare every file of a prepared folder with the manifest, raising for the first mismatch; about 1 s per GB."""
    root = Path(folder)
    manifest = Manifest.read(root)
    for path, expected in manifest.records.items():
        file = root / path
        with reading(file):
            size = file.stat().st_size if file.is_file() else None
            if size is None:
                raise UserError(f"{file} is missing, though {MANIFEST_FILE} lists it: {_again(root)}")
            if size != expected.bytes:
                raise UserError(f"{file} has {size} bytes, but must have {expected.bytes}: {_again(root)}")
            found = record(root, path).sha256
        if found != expected.sha256:
            raise UserError(
                f"{file} is damaged: its sha256 is {found[:12]}..., but must be {expected.sha256[:12]}...: "
                f"{_again(root)}"
            )
    if manifest.content != content_of(manifest.records):
        raise UserError(f"{root / MANIFEST_FILE} is damaged: its content is not of the chunks it lists: {_again(root)}")
    return manifest


def content_of(records: Mapping[str, FileRecord]) -> str:
    """SHA-256 (hex) of the chunks' checksums in reading order, without their names, which depend on the processes."""
    chunks = [f"{path.split('/')[0]} {file.sha256}" for path, file in records.items() if path.endswith(CHUNK_SUFFIX)]
    return hashlib.sha256("\n".join(chunks).encode()).hexdigest()


def _again(folder: str | Path) -> str:
    return f"delete {folder} and prepare it again"
