"""Rows of a text for a pretrained model: consecutive, not overlapping, each on its own with positions from 0."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sinks.data.corpus import find_corpus
from sinks.data.records import records
from sinks.errors import UserError, require
from sinks.interop.chat import chat_start
from sinks.interop.load import Pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AUTO, NONE, CHAT = "auto", "none", "chat"


@dataclass(frozen=True)
class TextRows:
    """Rows of token ids.

    Args:
        tokens: [N, T].
        source: where the text is from, in words.
        bos: id at position 0 of every row; None if rows begin with text; "chat" if with a chat template's start.
    """

    tokens: Tensor
    source: str
    bos: int | str | None


def read_rows(pretrained: Pretrained, text: str | None, rows: int, tokens: int, bos: str = AUTO) -> TextRows:
    """The first rows of a text; fewer than asked for if the text is shorter.

    A .txt file is tokenized as a whole; lines of .jsonl, rows of .parquet and files of a folder one after the other,
    with nothing between them. Row r holds tokens r * T to (r + 1) * T - 1 of the text; with BOS it holds BOS and all of
    these but the last, so that T stays the same, and likewise with the start of a chat, which is longer.

    Args:
        pretrained: model whose tokenizer is used.
        text: a file or folder as `sinks prepare` takes it; None: the source files of Python's standard library.
        rows: number N of rows.
        tokens: length T of a row.
        bos: "auto": the id that the tokenizer itself puts before a text, if any; "none"; "chat": what the model's chat
            template puts before a user's message, so that a row is the beginning of one; or an id.

    Raises:
        UserError: if the text is shorter than a row, an id is not in the model's vocabulary, or there is no chat
            template, or its start leaves no room in a row.
    """
    require("rows", rows, at_least=1, remedy="give e.g. 16")
    require("tokens", tokens, at_least=2, remedy="give e.g. 512")
    corpus = find_corpus(None if text is None else [text])
    source = ", ".join(corpus.sources)
    vocabulary = pretrained.model.get_input_embeddings().num_embeddings
    start = chat_start(pretrained) if bos == CHAT else bos_id(bos, pretrained.bos, vocabulary)
    if len(start) >= tokens:
        raise UserError(f"the start of a chat has {len(start)} tokens, but a row has {tokens}: give --tokens more")
    ids: list[int] = []
    for part in _encoded((t for file in corpus.files for t in records(file, "text") if t), pretrained.tokenizer):
        ids += part
        if len(ids) >= rows * tokens:
            break
    if len(ids) < tokens:
        raise UserError(f"{source} has {len(ids)} tokens, but a row has {tokens}: give a longer text, or --tokens less")
    found = torch.tensor(ids[: min(rows, len(ids) // tokens) * tokens]).view(-1, tokens)
    found = torch.cat([torch.tensor(start, dtype=found.dtype).expand(len(found), -1), found], dim=1)[:, :tokens]
    largest = int(found.max())
    if largest >= vocabulary:
        raise UserError(
            f"the tokenizer of {pretrained.name} gives id {largest}, but the model's ids end at {vocabulary - 1}: "
            "restore the tokenizer that belongs to it"
        )
    return TextRows(found, source, CHAT if bos == CHAT else next(iter(start), None))


def bos_id(given: str, own: int | None, vocabulary: int) -> list[int]:
    """The id before every row, or none, from the option `bos`.

    Args:
        given: "auto", "none" or an id.
        own: what the tokenizer puts before a text.
        vocabulary: number of ids.
    """
    if given in (AUTO, NONE):
        return [own] if given == AUTO and own is not None else []
    if not given.isascii() or not given.isdigit() or int(given) >= vocabulary:
        raise UserError(
            f"bos is {given!r}, but must be {AUTO}, {NONE}, {CHAT} or an id below {vocabulary}: give one of these"
        )
    return [int(given)]


def _encoded(texts: Iterator[str], tokenizer: "Tokenizer") -> Iterator[list[int]]:
    for text in texts:
        yield tokenizer.encode(text, add_special_tokens=False).ids
