"""Contents of a prepared folder, and their verification: litdata reads damaged chunks without an error."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sinks.errors import UserError

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.json"
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
        skipped_files: empty files, and files of the standard library that are not UTF-8.
        unit: what a document is, in words.
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
    skipped_files: int
    unit: str
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
            values = json.loads(file.read_text(encoding="utf-8"))
            values["splits"] = {name: Split(**split) for name, split in values["splits"].items()}
            values["records"] = {path: FileRecord(**record) for path, record in values["records"].items()}
            return cls(**values)
        except FileNotFoundError:
            raise UserError(f"{folder} has no {MANIFEST_FILE}: {_again(folder)}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file} cannot be read ({type(error).__name__}: {error}): {_again(folder)}") from None


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
        if not file.is_file():
            raise UserError(f"{file} is missing, though {MANIFEST_FILE} lists it: {_again(root)}")
        size = file.stat().st_size
        if size != expected.bytes:
            raise UserError(f"{file} has {size} bytes, but must have {expected.bytes}: {_again(root)}")
        found = record(root, path).sha256
        if found != expected.sha256:
            raise UserError(
                f"{file} is damaged: its sha256 is {found[:12]}..., but must be {expected.sha256[:12]}...: "
                f"{_again(root)}"
            )
    return manifest


def _again(folder: str | Path) -> str:
    return f"delete {folder} and prepare it again"
