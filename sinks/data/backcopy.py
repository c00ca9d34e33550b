"""Bigram-Backcopy: the smallest task on which attention sinks form (after Guo et al. 2024, arXiv:2410.13835).

Tokens follow a bigram chain; after a trigger token the token *before* the trigger is repeated. A head that copies
needs somewhere to look when the current token is no trigger, and learns to look at the first token (BOS).
"""

import hashlib
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from sinks.data.module import TokenData
from sinks.data.order import identity_order
from sinks.errors import UserError

BOS = 0
CHARACTERS = "\n (),.:=_abcdefghijklmnopqrstuvwxyz"
TRIGGERS = "te."
SOURCES = ("argparse.py", "pydoc_data/topics.py")
BLOCK = 1024
VALIDATION_BLOCKS_FROM = 2**40
VALIDATION_SEED = 0


def bigram_table(text: str) -> np.ndarray:
    """Transition probabilities [V, V] over BOS and `CHARACTERS`, estimated from text; row 0 holds the unigrams."""
    index = {character: i + 1 for i, character in enumerate(CHARACTERS)}
    ids = np.array([index[c] for c in text.lower() if c in index])
    vocab_size = len(CHARACTERS) + 1
    counts = np.zeros((vocab_size, vocab_size))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    counts[BOS] = np.bincount(ids, minlength=vocab_size)
    counts += 1e-9
    counts[:, BOS] = 0
    return counts / counts.sum(axis=1, keepdims=True)


def encode(text: str) -> list[int]:
    """Token ids of a text: BOS, then a token per character; upper case is read as lower case."""
    unknown = sorted(set(text.lower()) - set(CHARACTERS))
    if unknown:
        raise UserError(f"text has {''.join(unknown)!r}, but the task knows only {CHARACTERS!r}: leave the others out")
    return [BOS, *(CHARACTERS.index(character) + 1 for character in text.lower())]


def decode(ids: Sequence[int]) -> str:
    """The text of token ids, without BOS."""
    return "".join(CHARACTERS[i - 1] for i in ids if i != BOS)


def standard_library_bigrams() -> np.ndarray:
    """The table of the running Python's own documentation and source text, so that no download is needed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return bigram_table("".join((root / name).read_text(encoding="utf-8") for name in SOURCES))


def triggers(vocab_size: int) -> np.ndarray:
    """Which token ids are triggers [V] bool."""
    found = np.zeros(vocab_size, dtype=bool)
    found[[CHARACTERS.index(c) + 1 for c in TRIGGERS]] = True
    return found


class BackcopySequences(Dataset[torch.Tensor]):
    """Rows [length] int64 that are a pure function of (seed, index): BOS, then the chain with its back-copies.

    Args:
        table: transition probabilities [V, V].
        length: tokens of a row, BOS included.
        seed: data seed.
        size: number of rows.
        first: index of row 0, so that validation rows are never training rows.
    """

    def __init__(self, table: np.ndarray, length: int, seed: int, size: int, first: int = 0) -> None:
        self.cumulative = np.cumsum(table, axis=1)
        self.is_trigger = triggers(len(table))
        self.length, self.seed, self.size, self.first = length, seed, size, first
        self._cached: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return self.size

    def _block(self, number: int) -> torch.Tensor:
        """Rows [BLOCK, length]: drawn together, because one vectorized chain costs as much as one row."""
        uniform = np.random.Generator(np.random.Philox(key=[self.seed, number])).random((BLOCK, self.length))
        last_token = len(self.cumulative) - 1
        rows = np.zeros((BLOCK, self.length), dtype=np.int64)
        for t in range(1, self.length):
            previous = rows[:, t - 1]
            drawn = (uniform[:, t, None] > self.cumulative[previous]).sum(1).clip(1, last_token)
            copied = rows[:, t - 2] if t > 1 else np.zeros(BLOCK, dtype=np.int64)
            rows[:, t] = np.where(self.is_trigger[previous] & (copied != BOS), copied, drawn)
        return torch.from_numpy(rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        number, offset = divmod(self.first + index, BLOCK)
        if self._cached is None or self._cached[0] != number:
            self._cached = (number, self._block(number))
        return self._cached[1][offset]


class Backcopy(TokenData):
    """Bigram-Backcopy, fresh rows at every step.

    Args:
        context_length: tokens the model sees.
        batch_size: rows per process and step.
        validation_batch_size: rows per process and validation batch; as many as in training if not given.
        validation_rows: fixed rows that validation reads.
        seed: data seed.
        num_workers: loader processes per rank; generation is cheap, so none by default.
    """

    def __init__(
        self,
        context_length: int = 64,
        batch_size: int = 16,
        validation_batch_size: int | None = None,
        validation_rows: int = 192,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(len(CHARACTERS) + 1, context_length, batch_size, seed, num_workers, validation_batch_size)
        if validation_rows < 1:
            raise UserError(
                f"data.validation_rows is {validation_rows}, but must be at least 1: give a positive number"
            )
        self.validation_rows = validation_rows
        self.table = standard_library_bigrams()

    def train_set(self) -> Dataset[torch.Tensor]:
        return BackcopySequences(self.table, self.context_length + 1, self.seed, VALIDATION_BLOCKS_FROM * BLOCK)

    def train_order(self) -> Callable[[int], int]:
        return identity_order

    def validation_set(self) -> Dataset[torch.Tensor]:
        """The same rows for every data seed, and never one of the training rows."""
        first = VALIDATION_BLOCKS_FROM * BLOCK
        return BackcopySequences(self.table, self.context_length + 1, VALIDATION_SEED, self.validation_rows, first)

    def query_kinds(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Where the head has to copy, and where it has nothing to do."""
        after = torch.from_numpy(triggers(self.vocab_size))[tokens]
        return {"after a trigger": after, "elsewhere": ~after}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(np.round(self.table, 12).tobytes())
        digest.update(f"{self.context_length} {self.seed} {self.validation_rows}".encode())
        return digest.hexdigest()[:16]
