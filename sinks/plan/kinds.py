"""Which part of a decoder does what: every module with parameters of its own, and the kind of work it belongs to."""

from collections.abc import Iterator

from torch import nn

from sinks.models.attention import Attention
from sinks.models.attention_gates import AttentionGate
from sinks.models.clips import ResidualClip
from sinks.models.decoder import Decoder
from sinks.models.feed_forward import FeedForward
from sinks.models.gated_norm import GatedNorm
from sinks.models.layers import Embedding
from sinks.models.norms import Norm

# A part is of the innermost kind around it: the low-rank maps of a GatedNorm are a norm gate, the norm in it a norm.
KINDS: dict[type[nn.Module], str] = {
    Embedding: "embedding",
    GatedNorm: "norm gates",
    Norm: "norms",
    AttentionGate: "attention gates",
    Attention: "attention",
    FeedForward: "feed-forward",
    ResidualClip: "clips",
}


def parts(decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """Every module of a decoder, with its kind: one of `KINDS`, `head`, or `other`."""
    for child in decoder.children():
        yield from _below(child, "head" if child is decoder.head else "other")


def _below(module: nn.Module, around: str) -> Iterator[tuple[str, nn.Module]]:
    kind = next((name for base, name in KINDS.items() if isinstance(module, base)), around)
    yield kind, module
    for child in module.children():
        yield from _below(child, kind)
