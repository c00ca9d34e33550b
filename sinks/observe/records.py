"""What a site reports of one forward pass: typed, and None where not available.

A group of statistics names the fields it reads and is absent where one of them is None, so that no formula is applied
to an attention or a norm that it does not describe. B batch, T tokens, D channels, H query heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sinks.stats import functional


@dataclass
class NormRecord:
    """Of a norm site.

    Args:
        input: the residual stream that the norm reads [B, T, D].
        output: what the sublayer reads [B, T, D]; None where the stream is read and no norm is there.
        gain: what a channel is multiplied by, besides 1 / rms [D].
        divided: what is divided by its RMS [B, T, D].
        weight: the gain after that division [D].
        normalized: the result of both [B, T, D].
        gate: gate values [B, T, D] or [B, T, 1].
        normed: what the gate multiplies [B, T, D].
        clipped: which values the norm clips first [B, T, D] bool.
    """

    input: Tensor
    output: Tensor | None
    gain: Tensor | None = None
    divided: Tensor | None = None
    weight: Tensor | None = None
    normalized: Tensor | None = None
    gate: Tensor | None = None
    normed: Tensor | None = None
    clipped: Tensor | None = None

    @cached_property
    def median(self) -> Tensor:
        """Of each token's |input| [B, T], computed once for all groups."""
        return functional.token_median(self.input)


@dataclass
class AttentionRecord:
    """Of an attention site; heads are those that this process holds.

    Args:
        q: queries [B, H, T, head_dim], positions applied.
        k: keys [B, n_kv_heads, T, head_dim], positions applied.
        v: values [B, n_kv_heads, T, head_dim].
        first_token_mass: weight of each query on token 0 [B, H, T]; of rows that do not sum to one, the fraction.
        learned_sink_mass: weight on learned sinks [B, H, T].
        lse: log of what a row is divided by [B, H, T].
        entropy: of a row in nats, learned sinks included [B, H, T].
        max_logit: largest score of a row [B, H, T].
        learned_sinks: number of learned sinks that count as keys in the entropy.
        gate: values of the output gate [B, H, T] or [B, H, T, head_dim].
        out_weight: weight of the output projection [D, H * head_dim].
        row_normalized: whether weights of a row, learned sinks included, sum to one.
        attend: values [B, n_kv_heads, T, head_dim] -> their sums by these weights, without a gate [B, H, T, head_dim];
            None with learned values.
        masses: computes `key_mass` [B, H, T], None where it is not defined.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    first_token_mass: Tensor | None = None
    learned_sink_mass: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    max_logit: Tensor | None = None
    learned_sinks: int = 0
    gate: Tensor | None = None
    out_weight: Tensor | None = None
    row_normalized: bool = True
    attend: Callable[[Tensor], Tensor] | None = None
    masses: Callable[[], Tensor | None] | None = None

    @cached_property
    def key_mass(self) -> Tensor | None:
        """Mass each key receives from all queries [B, H, T]."""
        return None if self.masses is None else self.masses()


@dataclass
class ClipRecord:
    """Of a clip of the residual stream.

    Args:
        clipped: which values are clipped [B, T, D] bool.
    """

    clipped: Tensor


Record = NormRecord | AttentionRecord | ClipRecord
