"""The installed Python's text as tokens: some hundred megabytes, available without a network.

<folder>/text-<fingerprint>/
    tokenizer.json         byte-level BPE, trained on a sample of the training documents
    train.bin, val.bin     token ids, one document after the other
    text.json              the description, written last
"""

import hashlib
import multiprocessing
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from sinks.data.corpus import Corpus
from sinks.data.document_store import DocumentStore, validation_documents
from sinks.data.files import walk
from sinks.data.module import TokenData
from sinks.data.order import WindowedShuffle
from sinks.data.prepare import DocumentTokens
from sinks.data.tokenizer import TextTokenizer
from sinks.errors import UserError
from sinks.record.folder import from_json, to_json, write_atomically

UNUSED = "empty, not UTF-8, or duplicate"
SUFFIXES = (".py", ".md", ".rst", ".txt")
VALIDATION_SHARE = 0.01
SAMPLE_BYTES = 32 * 2**20  # more text changes the merges little and takes longer
GROUP_BYTES = 2**20


@dataclass(frozen=True)
class Installed:
    """Tokens of the installed text, on disk.

    Args:
        fingerprint: of the files' contents and everything that determines their tokens.
        files: number of files.
        skipped: number of files skipped: empty, not UTF-8, or duplicates.
        bytes: of the files.
        vocab_size: number of token ids.
        train_tokens: for training.
        validation_tokens: for validation.
    """

    fingerprint: str
    files: int
    skipped: int
    bytes: int
    vocab_size: int
    train_tokens: int
    validation_tokens: int


def roots() -> list[Path]:
    """Folders of the running Python's library and packages, none inside another."""
    paths = sysconfig.get_paths()
    found = sorted({Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib")})
    return [root for root in found if not any(other in root.parents for other in found)]


def find(most_bytes: int | None = None) -> Corpus:
    """Every text file, in a fixed order, each content once.

    Args:
        most_bytes: where to stop; None for everything.
    """
    files: list[Path] = []
    seen: set[bytes] = set()
    skipped = total = 0
    for root in roots():
        for file in walk(root, without=("__pycache__",)):
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                continue
            data = file.read_bytes()
            digest = hashlib.sha256(data).digest()
            if digest in seen or not data.strip() or not _is_utf8(data):
                skipped += 1
                continue
            if most_bytes is not None and total + len(data) > most_bytes:
                return Corpus("installed", [str(root) for root in roots()], files, {UNUSED: skipped}, "text")
            seen.add(digest)
            files.append(file)
            total += len(data)
    if not files:
        raise UserError(f"found no text below {', '.join(map(str, roots()))}: use a Python with its library's source")
    return Corpus("installed", [str(root) for root in roots()], files, {UNUSED: skipped}, "text")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def prepare(folder: Path, vocab_size: int, most_bytes: int | None = None, processes: int | None = None) -> Path:
    """Tokenize the installed text in parallel, unless that was already done.

    Args:
        folder: parent of such folders.
        vocab_size: number of token ids; the tokenizer may end with fewer entries.
        most_bytes: of text; None for everything.
        processes: number of workers; None: one per core. Does not affect the result.

    Returns:
        The prepared folder.
    """
    corpus = find(most_bytes)
    settings = [corpus.fingerprint(), corpus.in_pieces, vocab_size, VALIDATION_SHARE, SAMPLE_BYTES]
    fingerprint = hashlib.sha256(to_json(settings).encode()).hexdigest()[:16]
    prepared = folder / f"text-{fingerprint[:8]}"
    # An archive of the report has only the first.
    if all((prepared / name).is_file() for name in ("text.json", "train.bin", "val.bin")):
        return prepared
    shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(parents=True)
    store = DocumentStore.write(corpus, prepared / "documents", lambda read: None)
    in_validation = validation_documents(store.hashes, VALIDATION_SHARE)
    members = {"train": np.flatnonzero(~in_validation), "val": np.flatnonzero(in_validation)}
    tokenizer = TextTokenizer.train(store.texts(_sample(members["train"], store.sizes)), vocab_size)
    tokenizer.save(prepared)
    counts = {
        split: _write(store, numbers, prepared, split, vocab_size, processes) for split, numbers in members.items()
    }
    store.file.unlink()
    content = Installed(
        fingerprint, len(corpus.files), corpus.skipped[UNUSED], corpus.size, vocab_size, counts["train"], counts["val"]
    )
    write_atomically(prepared / "text.json", to_json(asdict(content), indent=2) + "\n")
    return prepared


def _sample(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Evenly spaced documents with about `SAMPLE_BYTES` in total."""
    every = max(1, round(int(sizes[numbers].sum()) / SAMPLE_BYTES))
    return numbers[::every]


def _write(
    store: DocumentStore, numbers: np.ndarray, folder: Path, split: str, vocab_size: int, processes: int | None
) -> int:
    """Write the token ids of documents to one file; return their number."""
    tokens = DocumentTokens(store, folder, False, vocab_size)
    groups = store.groups(numbers, GROUP_BYTES)
    count = 0
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Not forked: this process may use a GPU.
    context = multiprocessing.get_context("spawn")
    workers = min(processes or os.cpu_count() or 1, len(groups))
    with (folder / f"{split}.bin").open("wb") as stream:
        for ids in _in_order(context, workers, tokens, groups):
            stream.write(ids.tobytes())
            count += len(ids)
    return count


def _in_order(
    context: multiprocessing.context.SpawnContext, workers: int, tokens: DocumentTokens, groups: list[np.ndarray]
) -> Iterator[np.ndarray]:
    if workers == 1:
        yield from map(tokens, groups)
        return
    with context.Pool(workers) as pool:
        yield from pool.imap(tokens, groups)


class MappedRows(Dataset[torch.Tensor]):
    """Rows [T + 1] int64 of a file of token ids, each starting at the last token of the one before.

    Args:
        file: of token ids.
        dtype: of the file.
        context_length: tokens T the model sees.
    """

    def __init__(self, file: Path, dtype: np.dtype, context_length: int) -> None:
        self.file, self.dtype, self.context_length = file, dtype, context_length

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.memmap(self.file, self.dtype, "r")

    def __len__(self) -> int:
        return max(0, (self.file.stat().st_size // self.dtype.itemsize - 1) // self.context_length)

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self.context_length
        return torch.from_numpy(self._tokens[start : start + self.context_length + 1].astype(np.int64))


class InstalledText(TokenData):
    """The installed Python's text in the suite's data order; rows start anywhere, without `<bos>`.

    Args:
        folder: returned by `prepare`.
        context_length: tokens the model sees.
        batch_size: rows per process and step.
        validation_batch_size: rows per process and validation batch; as in training by default.
        validation_rows: number of validation rows, evenly spaced; at most all.
        seed: data seed: the order of training rows.
        num_workers: loader processes per rank.
    """

    def __init__(
        self,
        folder: Path,
        context_length: int,
        batch_size: int,
        validation_batch_size: int | None = None,
        validation_rows: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.content = Installed(**from_json((folder / "text.json").read_text(encoding="utf-8")))
        super().__init__(self.content.vocab_size, context_length, batch_size, seed, num_workers, validation_batch_size)
        self.folder, self.validation_rows = folder, validation_rows

    def _rows(self, split: str) -> MappedRows:
        dtype = np.dtype(np.uint16 if self.content.vocab_size <= 2**16 else np.uint32)
        rows = MappedRows(self.folder / f"{split}.bin", dtype, self.context_length)
        if not len(rows):
            raise UserError(
                f"context_length is {self.context_length}, but {rows.file} has only {rows.file.stat().st_size} bytes: "
                "give a smaller one"
            )
        return rows

    @cached_property
    def _train_rows(self) -> MappedRows:
        return self._rows("train")

    def train_set(self) -> Dataset[torch.Tensor]:
        return self._train_rows

    def train_order(self) -> Callable[[int], int]:
        return WindowedShuffle([len(self._train_rows)], self.seed, window=1)

    def validation_set(self) -> Dataset[torch.Tensor]:
        rows = self._rows("val")
        count = min(self.validation_rows, len(rows))
        return torch.utils.data.Subset(rows, [i * len(rows) // count for i in range(count)])

    def fingerprint(self) -> str:
        options = [self.content.fingerprint, self.context_length, self.seed, self.validation_rows]
        return hashlib.sha256(to_json(options).encode()).hexdigest()[:16]
