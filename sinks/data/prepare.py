"""From text to a folder of token chunks: split by document, train the tokenizer, tokenize, checksum.

    <output>/<name>-<fingerprint>/
        manifest.json      written last: contents and checksums
        tokenizer.json     byte-level BPE, trained on the training documents; or a copy of the given one
        train/, val/       litdata chunks: token ids (uint16), about `CHUNK_BYTES` of text each

Rows are cut from a chunk on reading, so one folder serves every context length; the remainder of each chunk (of about
a million tokens), less than one row, is dropped.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sinks.data.chunks import write_chunks
from sinks.data.corpus import Corpus, find_corpus
from sinks.data.document_store import DocumentStore, validation_documents
from sinks.data.manifest import INDEX_FILE, SPLITS, Manifest, Split, content_of, record
from sinks.data.tokenizer import BOS_ID, SMALLEST_VOCABULARY, TOKENIZER_FILE, TextTokenizer, check_vocab_size
from sinks.errors import UserError
from sinks.progress import live, so_far

FORMAT = 1
CHUNK_BYTES = 4 * 2**20

BosPolicy = Literal["none", "document", "block"]


@dataclass(frozen=True)
class Preparation:
    """A corpus with every setting that changes its tokens, hashed in `fingerprint`; options as of `sinks prepare`."""

    corpus: Corpus
    output: Path
    vocab_size: int
    document_bos: bool
    validation_share: float
    fingerprint: str
    tokenizer: Path | None = None

    @classmethod
    def plan(
        cls,
        sources: list[str] | None,
        output: str | Path,
        vocab_size: int = 4096,
        bos: BosPolicy = "document",
        validation_share: float = 0.05,
        text_field: str = "text",
        tokenizer: str | Path | None = None,
    ) -> "Preparation":
        """Find the files and hash them (the 31 MB of the standard library: 0.1 s)."""
        check_vocab_size(vocab_size)
        if not 0 < validation_share < 1:
            raise UserError(
                f"validation_share is {validation_share}, but must be between 0 and 1: give a fraction such as 0.05"
            )
        if not str(output):
            raise UserError("output is empty: give the folder that holds prepared corpora, e.g. data")
        corpus = find_corpus(sources, text_field)
        # "block" adds <bos> on reading: it is stored like "none".
        document_bos = bos == "document"
        settings = [FORMAT, corpus.fingerprint(), corpus.in_pieces, vocab_size, document_bos, validation_share]
        settings += [CHUNK_BYTES, importlib.metadata.version("tokenizers")]
        given = None if tokenizer is None else Path(tokenizer)
        if given is not None:
            _check_tokenizer(given, vocab_size, bos)
            settings.append(hashlib.sha256(given.read_bytes()).hexdigest())
        fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return cls(corpus, Path(output), vocab_size, document_bos, validation_share, fingerprint, given)

    @property
    def folder(self) -> Path:
        return self.output / f"{self.corpus.name}-{self.fingerprint[:8]}"

    @property
    def finished(self) -> bool:
        """Whether the folder exists: it is renamed into place only when complete."""
        return os.path.isdir(self.folder)  # unlike Path.is_dir, also of a name that is too long

    def run(self, processes: int | None = None, progress: bool = True) -> Path:
        """Prepare if needed; of several processes that call this, one prepares and the others wait."""
        if processes is not None and processes < 1:
            raise UserError(f"processes is {processes}, but must be at least 1: leave it out for one for each core")
        try:
            self._prepare_once(processes or os.cpu_count() or 1, progress)
        except OSError as error:  # that of a file of the corpus is a UserError already
            raise UserError(
                f"{error.filename or self.folder} could not be written ({error.strerror or error}): "
                "free space, or give another output folder"
            ) from error
        return self.folder

    def _prepare_once(self, processes: int, progress: bool) -> None:
        from filelock import FileLock

        if self.finished:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        with FileLock(self.output / ".lock"):
            if self.finished:
                return
            prefix = f".{self.folder.name}."
            for interrupted in self.output.glob(f"{prefix}*"):
                shutil.rmtree(interrupted, ignore_errors=True)
            temporary = self.output / f"{prefix}{os.getpid()}"
            try:
                self._build(temporary, processes, progress)
                temporary.rename(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _build(self, folder: Path, processes: int, progress: bool) -> None:
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)

        with live("reading", self.corpus.size, "byte", progress) as advance:
            reached = so_far(advance)
            store = DocumentStore.write(self.corpus, scratch / "documents", reached)
            reached(self.corpus.size)
        in_validation = validation_documents(store.hashes, self.validation_share)
        members = {"train": np.flatnonzero(~in_validation), "val": np.flatnonzero(in_validation)}

        if self.tokenizer is not None:
            tokenizer = TextTokenizer.read(self.tokenizer)
        else:
            with live("training the tokenizer", len(members["train"]), "document", progress) as advance:
                texts = _counted(store.texts(members["train"]), advance)
                # Every merge shortens the text; the trainer reserves memory for each entry it is asked for.
                possible = SMALLEST_VOCABULARY + int(store.sizes[members["train"]].sum())
                tokenizer = TextTokenizer.train(texts, min(self.vocab_size, possible))
        tokenizer.save(folder)

        inputs = {folder / split: store.groups(members[split], CHUNK_BYTES) for split in SPLITS}
        tokens = DocumentTokens(store, folder, self.document_bos, self.vocab_size)
        with live("tokenizing", sum(map(len, inputs.values())), "chunk", progress) as advance:
            write_chunks(tokens, inputs, processes, scratch, so_far(advance))
        shutil.rmtree(scratch)
        self._manifest(folder, store, members, tokenizer).write(folder)

    def _manifest(
        self, folder: Path, store: DocumentStore, members: dict[str, np.ndarray], tokenizer: TextTokenizer
    ) -> Manifest:
        splits, chunks = {}, []
        for split in SPLITS:
            index = json.loads((folder / split / INDEX_FILE).read_text(encoding="utf-8"))
            chunks += [f"{split}/{chunk['filename']}" for chunk in index["chunks"]]
            splits[split] = Split(
                documents=len(members[split]),
                bytes=int(store.sizes[members[split]].sum()),
                tokens=sum(chunk["dim"] for chunk in index["chunks"]),
                chunks=len(index["chunks"]),
            )
        others = [*(f"{split}/{INDEX_FILE}" for split in SPLITS), TOKENIZER_FILE]
        records = {path: record(folder, path) for path in [*chunks, *others]}
        return Manifest(
            fingerprint=self.fingerprint,
            content=content_of(records),
            sources=self.corpus.sources,
            files=len(self.corpus.files),
            skipped=dict(self.corpus.skipped),
            unit=self.corpus.unit,
            records_without_text=store.without_text,
            vocab_size=self.vocab_size,
            tokenizer_entries=len(tokenizer),
            bos="document" if self.document_bos else "none",
            validation_share=self.validation_share,
            splits=splits,
            records=records,
            versions={name: importlib.metadata.version(name) for name in ("tokenizers", "litdata")},
        )


def prepare_text(
    sources: list[str] | None = None,
    output: str | Path = "data",
    vocab_size: int = 4096,
    bos: BosPolicy = "document",
    validation_share: float = 0.05,
    text_field: str = "text",
    processes: int | None = None,
    progress: bool = True,
    tokenizer: str | Path | None = None,
) -> Path:
    """Prepare a corpus as `sinks prepare` does, with the same arguments; returns the prepared folder."""
    plan = Preparation.plan(sources, output, vocab_size, bos, validation_share, text_field, tokenizer)
    return plan.run(processes, progress)


def _check_tokenizer(file: Path, vocab_size: int, bos: BosPolicy) -> None:
    """A given tokenizer, whose ids need not have `<bos>` at 0."""
    if not file.is_file():
        raise UserError(f"there is no tokenizer {file}: give a tokenizer.json")
    if bos != "none":
        raise UserError(f"bos is {bos}, but a given tokenizer has no <bos> of the suite's: give none")
    entries = len(TextTokenizer.read(file))
    if entries > vocab_size:
        raise UserError(f"vocab_size is {vocab_size}, but {file} has {entries} entries: give at least as many")


@dataclass(frozen=True)
class DocumentTokens:
    """Called with numbers of documents [N]: their token ids, concatenated, uint16 where all ids fit.

    `folder` holds the tokenizer; `document_bos` puts `<bos>` before every document.
    """

    store: DocumentStore
    folder: Path
    document_bos: bool
    vocab_size: int

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        tokenizer = TextTokenizer.load(self.folder)
        bos = [BOS_ID] if self.document_bos else []
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        # One at a time: the tokenizer's own record of a whole group takes hundreds of MB.
        documents = (tokenizer.encode_batch([text])[0] for text in self.store.texts(numbers))
        return np.concatenate([np.array(bos + ids, dtype=dtype) for ids in documents])


def _counted(texts: Iterator[str], advance: Callable[[int], None]) -> Iterator[str]:
    for text in texts:
        yield text
        advance(1)
