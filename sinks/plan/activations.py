"""What autograd keeps for the backward pass, found by running the decoder on tensors that have no memory.

The tensors pretend to be on the device that is planned for, so that its kernels' paths are taken and what they save is
what is counted: eager, since torch.compile keeps less. The decoder is run with one and with two rows: what grows is
activations, what does not is copies of weights, which autocast keeps until the backward pass has used them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from sinks.errors import UserError
from sinks.models.decoder import Decoder
from sinks.plan.layout import Precision


@dataclass(frozen=True)
class Kept:
    """Bytes kept for the backward pass.

    Args:
        inputs: of each block's input, all that activation checkpointing keeps of it.
        blocks: of each block.
        rest: of what stands before and after the blocks, logits apart.
    """

    inputs: list[int]
    blocks: list[int]
    rest: int

    def activations(self, checkpointing: bool) -> int:
        """Of the whole decoder; with activation checkpointing, of the block inputs and one block that is run again."""
        if checkpointing:
            return sum(self.inputs) + max(self.blocks) + self.rest
        return sum(self.blocks) + self.rest


@dataclass(frozen=True)
class DecoderMemory:
    """What a decoder holds besides its parameters.

    Args:
        per_row: kept for one text.
        weight_copies: bytes of weights in the dtype of the matrix products, kept whatever the number of rows.
        buffers: bytes of its buffers.
    """

    per_row: Kept
    weight_copies: int
    buffers: int


def decoder_memory(make: Callable[[], Decoder], tokens: int, precision: Precision, device: str) -> DecoderMemory:
    """Measure a decoder as one device holds it.

    Args:
        make: builds it, with the widths on this device.
        tokens: length T of a sequence.
        precision: of the run.
        device: type of the device, `cuda` or `cpu`; it need not be there.

    Raises:
        UserError: if what the decoder computes depends on values, which such tensors do not have.
    """
    try:
        return _measure(make, tokens, precision, device)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"the model calls {error.func}, whose result depends on values, but a plan has none: leave it out"
        ) from None


def _measure(make: Callable[[], Decoder], tokens: int, precision: Precision, device: str) -> DecoderMemory:
    with FakeTensorMode():
        with torch.device(device), _default_dtype(precision.stored):
            decoder = make()
        row = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        one, two = (_run(decoder, row.repeat(rows, 1), precision) for rows in (1, 2))
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in decoder.buffers())
    per_row = Kept(
        [more - once for more, once in zip(two.inputs, one.inputs, strict=True)],
        [more - once for more, once in zip(two.blocks, one.blocks, strict=True)],
        two.rest - one.rest,
    )
    return DecoderMemory(per_row, one.activations(False) - per_row.activations(False), buffers)


def _run(decoder: Decoder, rows: Tensor, precision: Precision) -> Kept:
    """Bytes kept by a forward pass of token ids [B, T]."""
    found = _Saved(decoder)
    inputs, blocks = [], []
    with (
        torch.autograd.graph.saved_tensors_hooks(found.pack, lambda tensor: tensor),
        _autocast(rows.device.type, precision.autocast),
    ):
        x = decoder.positions(decoder.embedding(rows))
        rest = found.take()
        for block in decoder.blocks:
            inputs.append(x.numel() * x.element_size())
            x = block(x)
            blocks.append(found.take())
        decoder.head(decoder.head_norm(x))
        rest += found.take()
    return Kept(inputs, blocks, rest)


class _Saved:
    """Adds up what autograd saves, each storage once, and none that the decoder owns."""

    def __init__(self, decoder: Decoder) -> None:
        owned = [tensor.untyped_storage() for tensor in (*decoder.parameters(), *decoder.buffers())]
        # Held on to, so that no other storage can come to lie at the same address.
        self._seen: dict[int, Any] = {storage._cdata: storage for storage in owned}
        self._bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self._bytes += storage.nbytes()
        return tensor

    def take(self) -> int:
        """Bytes since the last call."""
        taken, self._bytes = self._bytes, 0
        return taken


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """As torch.autocast, which switches itself off for a GPU that is not there."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, dtype is not None)
    torch.set_autocast_dtype(device, dtype or before[1])
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
