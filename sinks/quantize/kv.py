"""Keys and values rounded as the attention call receives them, positions applied: what a cache would hold."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sinks.models.decoder import Decoder
from sinks.models.taps import editing
from sinks.quantize.linear import Kept
from sinks.quantize.schemes import Quantizer

if TYPE_CHECKING:
    from sinks.interop.seam import AttentionCall, Seam

KV = "kv"  # the kind of what is quantized
Round = Callable[[Tensor], Tensor]  # [B, heads, T, width], keys or values
Rounding = Callable[[Round], AbstractContextManager[None]]  # a model whose keys and values are rounded


def rounder(quantizer: Quantizer, kept: Kept) -> Round:
    """Rounds all but the tokens that are kept, each head and token with a scale of its own."""
    by_row = replace(quantizer, reach="row", largest=None)

    def rounded(x: Tensor) -> Tensor:
        y, mask = by_row(x), kept.mask
        return y if mask is None else torch.where(mask[:, None, :, None], x, y)

    return rounded


def decoder_rounding(decoder: Decoder, sites: Sequence[str]) -> Rounding:
    """That of the suite's own decoder, by its taps.

    Args:
        decoder: the model.
        sites: of its attention, e.g. "blocks.0.attention".
    """
    return lambda rounded: editing(decoder, {f"{site}.{name}": rounded for site in sites for name in ("key", "value")})


def seam_rounding(seam: "Seam", attention: Sequence[nn.Module]) -> Rounding:
    """That of a transformers model, by its attention function.

    Args:
        seam: of the model.
        attention: modules that call it.
    """

    @contextmanager
    def rounding(rounded: Round) -> Iterator[None]:
        def edit(call: "AttentionCall", out: Tensor) -> Tensor:
            return replace(call, k=rounded(call.k), v=rounded(call.v)).run()[0]

        try:
            seam.open(KV)
            for module in attention:
                seam.edit(module, edit)
            yield
        finally:
            for module in attention:
                seam.edit(module, None)
            seam.close(KV)

    return rounding
