"""Where a model can be edited: norms of the residual stream, attention weights, output gates, one interface for all.

B batch, T tokens, D channels, H query heads, d channels of a head's value.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

Norm = Callable[[Tensor], Tensor]  # stream [B, T, D] -> what the sublayer reads [B, T, D]
NormEdit = Callable[[Tensor, Tensor, Norm], Tensor]  # the stream h, norm(h), norm -> in place of norm(h)
GateEdit = Callable[[Tensor], Tensor]  # values of a gate [B, H, T] or [B, H, T, d] -> in place of them


@dataclass(frozen=True)
class Attended:
    """Attention of one layer before its output gate, and before exclusive self-attention takes out own values.

    Args:
        weights: as used, on the keys of the row [B, H, T, T].
        values: of the keys, one per query head [B, H, T, d].
        learned_mass: weight on learned sinks [B, H, T].
        learned_output: what these add to the output [B, H, T, d].
        row_normalized: whether weights and learned mass of a row sum to one.
    """

    weights: Tensor
    values: Tensor
    learned_mass: Tensor
    learned_output: Tensor
    row_normalized: bool


# -> the output in place of the model's own [B, H, T, d], and where it is taken [B, H, T] bool.
AttentionEdit = Callable[[Attended], tuple[Tensor, Tensor]]


class NormPlace(Protocol):
    """A norm that reads the residual stream.

    Args:
        name: e.g. `blocks.0.attention.norm`, `head.norm`.
        kind: "attention", "feed_forward" or "head", by what reads the norm.
        layer: index of its block; the number of blocks for the head's.
    """

    name: str
    kind: str
    layer: int

    def edited(self, edit: NormEdit) -> AbstractContextManager[None]:
        """The norm gives what an edit makes of it inside the `with` block."""


class AttentionPlace(Protocol):
    """An attention layer.

    Args:
        name: e.g. `blocks.0.attention`.
        layer: index of its block.
        gated: whether it has an output gate.
    """

    name: str
    layer: int
    gated: bool

    def edited(self, edit: AttentionEdit) -> AbstractContextManager[None]:
        """The weighted values are what an edit makes of them inside the `with` block."""

    def gate_edited(self, edit: GateEdit) -> AbstractContextManager[None]:
        """The gate's values are what an edit makes of them inside the `with` block."""

    def out_weight(self) -> Tensor | None:
        """Weight of the output projection [D, H * d]; None where what a value adds is no plain product with it."""


@dataclass(frozen=True)
class Places:
    """Everything of a model that can be edited, in order.

    Args:
        blocks: of the residual stream.
        norms: that read it.
        attention: layers with attention weights.
    """

    blocks: Sequence[nn.Module]
    norms: Sequence[NormPlace]
    attention: Sequence[AttentionPlace]
