"""Real text in the suite's order of data: prepared once, then read as rows of any length."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property

import torch
from torch.utils.data import Dataset, Subset

from sinks.data.manifest import Manifest, verify
from sinks.data.module import TokenData
from sinks.data.order import WindowedShuffle
from sinks.data.prepare import BosPolicy, Preparation
from sinks.data.rows import TokenRows, is_litdata, is_prepared
from sinks.data.tokenizer import TextTokenizer
from sinks.errors import UserError


class Text(TokenData):
    """Text as tokens of a byte-level BPE trained on it, split into train and validation by document.

    A corpus is prepared when it is first used, in a folder of its own below `folder`. One source may instead be a
    folder (or URL: s3://, gs://) that `sinks prepare` or litdata.optimize wrote, with train/ and val/ in it.
    Such a folder without manifest.json is read without checksums, and `bos` must describe it.

    Args:
        sources: .txt, .jsonl and .parquet files (UTF-8) and folders of them, links followed, or one prepared folder;
            null: the source files of Python's standard library.
        folder: of prepared corpora.
        vocab_size: number of token ids; the tokenizer may end with fewer entries.
        context_length: tokens the model sees.
        batch_size: rows per process and step.
        validation_batch_size: rows per process and validation batch; as many as in training if not given.
        bos: where `<bos>` is: nowhere, before every document, or first in every row.
        validation_share: fraction of documents for validation.
        validation_rows: number of validation rows, evenly spaced; null: all.
        text_field: field of a .jsonl line, column of a .parquet file.
        seed: data seed: the order of training rows.
        num_workers: loader processes per rank.
        window: number of chunks (each about a million tokens) whose rows are mixed.
        tokenizer: tokenizer.json of a model to use in place of one trained on the text; bos must be none.
    """

    PLACES = ("sources", "folder")

    def __init__(
        self,
        sources: list[str] | None = None,
        folder: str = "data",
        vocab_size: int = 4096,
        context_length: int = 256,
        batch_size: int = 8,
        validation_batch_size: int | None = None,
        bos: BosPolicy = "document",
        validation_share: float = 0.05,
        validation_rows: int | None = None,
        text_field: str = "text",
        seed: int = 0,
        num_workers: int = 0,
        window: int = 4,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(vocab_size, context_length, batch_size, seed, num_workers, validation_batch_size)
        for name, value in (("window", window), ("validation_rows", validation_rows)):
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}, but must be at least 1: give a positive number")
        self.sources, self.folder, self.text_field, self.bos, self.window = sources, folder, text_field, bos, window
        self.validation_share, self.validation_rows = validation_share, validation_rows
        self.given_tokenizer = tokenizer
        self._verified = False

    def prepare_data(self) -> None:
        """Prepare the corpus if needed, and verify the checksums of its files, once per process."""
        if self.manifest is not None and not self._verified:
            verify(self.location)
            self._verified = True

    @cached_property
    def _given(self) -> str | None:
        """The one source, if it holds chunks already."""
        chunks = [source for source in self.sources or [] if is_litdata(source)]
        if chunks and self.sources != chunks[:1]:
            raise UserError(
                f"data.sources has {len(self.sources or [])} entries, but {chunks[0]} holds chunks already and must "
                "be the only one: give only it, or only text"
            )
        return chunks[0] if chunks else None

    @cached_property
    def location(self) -> str:
        """Folder or URL that holds train/ and val/; prepared on first access."""
        if self._given is not None:
            if self.given_tokenizer is not None:
                raise UserError(
                    f"data.tokenizer is {self.given_tokenizer}, but {self._given} holds token ids already: leave it out"
                )
            return self._given
        plan = Preparation.plan(
            self.sources,
            self.folder,
            self.vocab_size,
            self.bos,
            self.validation_share,
            self.text_field,
            self.given_tokenizer,
        )
        return str(plan.run())

    @cached_property
    def manifest(self) -> Manifest | None:
        """None where litdata.optimize wrote the chunks, or where they are remote."""
        if self._given is not None and not is_prepared(self._given):
            return None
        manifest = Manifest.read(self.location)
        if manifest.vocab_size > self.vocab_size:
            raise UserError(
                f"data.vocab_size is {self.vocab_size}, but {self.location} has {manifest.vocab_size} token ids: "
                f"give {manifest.vocab_size}"
            )
        if manifest.bos != ("document" if self.bos == "document" else "none"):
            fitting = "document" if manifest.bos == "document" else "none or block"
            raise UserError(
                f"data.bos is {self.bos}, but {self.location} was prepared with {manifest.bos}: give {fitting}, "
                "or prepare the text again"
            )
        return manifest

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """To encode prompts and decode rows."""
        return TextTokenizer.load(self.location)

    def _rows(self, split: str) -> TokenRows:
        _ = self.manifest
        location = f"{self.location.rstrip('/')}/{split}"
        return TokenRows(location, self.context_length, self.bos == "block", self.vocab_size)

    @cached_property
    def _train_rows(self) -> TokenRows:
        return self._rows("train")

    @cached_property
    def _validation_rows(self) -> TokenRows:
        return self._rows("val")

    def train_set(self) -> Dataset[torch.Tensor]:
        return self._train_rows

    def train_order(self) -> Callable[[int], int]:
        return WindowedShuffle(self._train_rows.chunk_lengths, self.seed, self.window)

    def validation_set(self) -> Dataset[torch.Tensor]:
        """The same rows for every data seed, spread over the whole validation text."""
        rows = self._validation_rows
        count = min(self.validation_rows or len(rows), len(rows))
        return Subset(rows, [i * len(rows) // count for i in range(count)])

    def fingerprint(self) -> str:
        """Of the tokens themselves and of how rows are cut and ordered; of remote chunks only the index is hashed."""
        if self.manifest is not None:
            content = self.manifest.content
        else:
            chunks = [rows.index["chunks"] for rows in (self._train_rows, self._validation_rows)]
            content = json.dumps(chunks, sort_keys=True)
        options = [self.vocab_size, self.context_length, self.bos, self.seed, self.window, self.validation_rows]
        return hashlib.sha256(json.dumps([content, *options]).encode()).hexdigest()[:16]
