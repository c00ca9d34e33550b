"""A corpus as one file of documents, read by number, and its split into train and validation."""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sinks.data.corpus import Corpus
from sinks.errors import UserError


@dataclass(frozen=True)
class DocumentStore:
    """All documents, concatenated (UTF-8).

    Args:
        file: of all documents.
        offsets: document `n` is bytes `offsets[n]` to `offsets[n + 1]` [D + 1] int64.
        hashes: first 64 bits of each document's SHA-256 [D] uint64.
        without_text: number of records that became no document.
    """

    file: Path
    offsets: np.ndarray
    hashes: np.ndarray
    without_text: int = 0

    @classmethod
    def write(cls, corpus: Corpus, file: Path, progress: Callable[[int], None]) -> "DocumentStore":
        """Copy a corpus; `progress` is called with the bytes of the corpus that were read."""
        offsets, hashes, without_text = array("q", [0]), array("Q"), 0
        with file.open("wb") as stream:
            for read, document in corpus.documents():
                progress(read)
                if document is None:
                    without_text += 1
                    continue
                data = document.encode()
                stream.write(data)
                offsets.append(offsets[-1] + len(data))
                hashes.append(int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
        return cls(file, np.array(offsets, dtype=np.int64), np.array(hashes, dtype=np.uint64), without_text)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each document [D]."""
        return np.diff(self.offsets)

    def texts(self, numbers: np.ndarray) -> Iterator[str]:
        """The documents of the given numbers."""
        with self.file.open("rb") as stream:
            for number in numbers:
                stream.seek(self.offsets[number])
                yield stream.read(self.offsets[number + 1] - self.offsets[number]).decode()

    def groups(self, numbers: np.ndarray, size: int) -> list[np.ndarray]:
        """Consecutive documents in groups, each closed once it has `size` bytes."""
        cuts, closed = [], 0
        for position, end in enumerate(np.cumsum(self.sizes[numbers])[:-1], start=1):
            if end - closed >= size:
                cuts.append(position)
                closed = end
        return np.split(numbers, cuts)


def validation_documents(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which documents are for validation [D] bool: those of the smallest hashes, so equal documents go together.

    Args:
        hashes: first 64 bits of each document's SHA-256 [D].
        share: fraction of the range of hashes that is for validation; each side gets at least one document.
    """
    distinct = len(np.unique(hashes))
    if distinct < 2:
        raise UserError(
            f"the corpus has {distinct} different document{'s' * (distinct != 1)}, but train and validation need "
            "one each: give more text"
        )
    chosen = hashes < np.uint64(share * 2**64)
    if not chosen.any():
        return hashes == hashes.min()
    if chosen.all():
        return hashes != hashes.max()
    return chosen
