"""Rows of tokens read by index from litdata chunks, on disk or in an object store."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from sinks.data.files import reading
from sinks.data.index import check_local, read_index
from sinks.data.manifest import INDEX_FILE, MANIFEST_FILE, SPLITS
from sinks.data.tokenizer import BOS_ID, TOKENIZER_FILE
from sinks.errors import UserError


class TokenRows(Dataset[torch.Tensor]):
    """Rows [T + 1] int64, cut consecutively from each chunk; the remainder of a chunk is dropped.

    Args:
        location: folder of one split, or its URL.
        context_length: tokens T the model sees.
        block_bos: put `<bos>` first in every row, before T tokens of text.
        vocab_size: token ids must be smaller.
    """

    def __init__(self, location: str, context_length: int, block_bos: bool, vocab_size: int) -> None:
        import litdata

        from sinks.data.tokens_loader import TokensLoader

        self.location = location
        self.vocab_size = vocab_size
        self.head = np.full(int(block_bos), BOS_ID, dtype=np.int64)
        stored = context_length + 1 - len(self.head)
        if not is_remote(location):
            check_local(Path(location))
        try:
            self.stream = litdata.StreamingDataset(location, item_loader=TokensLoader(block_size=stored))
        except Exception as error:  # a remote folder is what litdata, or the store's client, finds it to be
            raise UserError(
                f"{location} cannot be opened ({type(error).__name__}: {error}): "
                "give a folder or URL with train/ and val/ in it"
            ) from error
        self.index = read_index(Path(self.stream.input_dir.path))
        # Rows of each chunk. The length of a StreamingDataset is divided by the number of ranks; this is not.
        self.chunk_lengths = [chunk["dim"] // stored for chunk in self.index["chunks"]]
        if sum(self.chunk_lengths) == 0:
            longest = max(chunk["dim"] for chunk in self.index["chunks"])
            raise UserError(
                f"context_length is {context_length}, but the longest chunk of {location} has {longest} tokens: "
                f"give at most {longest - stored + context_length}, or more text"
            )

    def __len__(self) -> int:
        return sum(self.chunk_lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        try:
            tokens = self.stream[int(index)]
        except Exception as error:
            if is_remote(self.location):
                raise
            check_local(Path(self.location))  # a chunk that vanished during training
            raise UserError(
                f"{self.location} cannot be read by litdata ({type(error).__name__}: {error}): prepare the folder again"
            ) from error
        row = np.concatenate([self.head, tokens], dtype=np.int64)
        # As unsigned, negative ids are the largest.
        largest = int(row[row.view(np.uint64).argmax()])
        if not 0 <= largest < self.vocab_size:
            raise UserError(
                f"{self.location} has token id {largest}, but vocab_size is {self.vocab_size}: "
                f"give {f'vocab_size {largest + 1} or more, or ' if largest > 0 else ''}other data"
            )
        return torch.from_numpy(row)


def is_remote(location: str) -> bool:
    """Whether litdata fetches the chunks from elsewhere: s3://, gs://, ... (and local:, litdata's stand-in)."""
    return "://" in location or location.startswith("local:")


def is_prepared(source: str) -> bool:
    """Whether a source is a folder that `sinks prepare` wrote."""
    return not is_remote(source) and any(Path(source, file).is_file() for file in (MANIFEST_FILE, TOKENIZER_FILE))


def is_litdata(source: str) -> bool:
    """Whether a source holds chunks rather than text."""
    if is_remote(source):
        return True
    folders = [Path(source), *(Path(source, split) for split in SPLITS)]
    with reading(Path(source)):
        return (
            is_prepared(source)
            or any(next(folder.glob("chunk-*.bin"), None) is not None for folder in folders)
            or any((folder / INDEX_FILE).is_file() for folder in folders[1:])
        )
