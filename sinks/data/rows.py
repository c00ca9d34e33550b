"""Rows of tokens read by index from litdata chunks, on disk or in an object store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

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
            _check_local(Path(location))
        try:
            self.stream = litdata.StreamingDataset(location, item_loader=TokensLoader(block_size=stored))
        except FileNotFoundError as error:
            raise UserError(
                f"{location} cannot be opened ({error}): give a folder or URL with train/ and val/ in it"
            ) from None
        self.index = _read_index(Path(self.stream.input_dir.path))
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
        except Exception:
            if not is_remote(self.location):
                _check_local(Path(self.location))  # a chunk that vanished during training
            raise
        row = np.concatenate([self.head, tokens], dtype=np.int64)
        largest = int(row.max())
        if largest >= self.vocab_size:
            raise UserError(
                f"{self.location} has token id {largest}, but vocab_size is {self.vocab_size}: "
                f"give vocab_size {largest + 1} or more, or other data"
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
    if is_remote(source) or is_prepared(source):
        return True
    folders = [Path(source), *(Path(source, split) for split in SPLITS)]
    return any(next(folder.glob("chunk-*.bin"), None) is not None for folder in folders) or any(
        (folder / INDEX_FILE).is_file() for folder in folders[1:]
    )


def _check_local(folder: Path) -> None:
    """Validate local chunks: litdata waits for missing ones as if they were being downloaded."""
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"{folder} has no {INDEX_FILE}: give a folder with train/ and val/, each written by litdata.optimize"
        )
    for chunk in _read_index(folder)["chunks"]:
        file = folder / chunk["filename"]
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise UserError(f"{file} is missing, though {INDEX_FILE} lists it: prepare the folder again")
        if size != chunk["chunk_bytes"]:
            raise UserError(f"{file} has {size} bytes, but must have {chunk['chunk_bytes']}: prepare the folder again")


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX_FILE
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["config"]["item_loader"] != "TokensLoader":
            raise UserError(
                f"{folder} was written for {index['config']['item_loader']}, but TokensLoader is needed: "
                "give item_loader=TokensLoader() to litdata.optimize"
            )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read ({type(error).__name__}: {error}): prepare the folder again") from None
    return index
