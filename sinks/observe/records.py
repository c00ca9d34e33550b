"""What a site reports of one forward pass: typed, and None where not available.

A group of statistics names the fields it reads and is absent where one of them is None, so that no formula is applied
to an attention or a norm that it does not describe. B batch, T tokens, D channels, H query heads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from sinks.observe.documents import Documents
from sinks.stats import functional


@dataclass
class NormRecord:
    """Of a norm site.

    Args:
        input: the residual stream that the norm reads [B, T, D]; at an output norm, the sublayer's output.
        output: what the sublayer reads [B, T, D], or what joins the residual stream; None where the stream is read and
            no norm is there.
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
    def _median_and_largest(self) -> tuple[Tensor, Tensor]:
        return functional.token_median_and_largest(self.input)

    @property
    def median(self) -> Tensor:
        """Of each token's |input| [B, T], computed once for all groups."""
        return self._median_and_largest[0]

    @property
    def largest(self) -> Tensor:
        """The largest of each token's |input|, descending [B, T, max(TOP_CHANNELS)]."""
        return self._median_and_largest[1]

    @cached_property
    def sample_median(self) -> Tensor:
        """Of each sample's |input| [B]."""
        return functional.sample_median(self.input)

    def of_documents(self, documents: Documents) -> "list[NormRecord]":
        """A record of the documents of each length, as rows."""
        names = ("input", "output", "divided", "normalized", "gate", "normed", "clipped")
        return _split(self, names, documents)


@dataclass
class AttentionRecord:
    """Of an attention site; heads are those that this process holds.

    Args:
        q: queries [B, H, T, head_dim], positions applied.
        k: keys [B, n_kv_heads, T, head_dim], positions applied.
        v: values [B, n_kv_heads, T, head_dim].
        first_token_mass: weight of each query on token 0 [B, H, T]; of rows that do not sum to one, the fraction.
        learned_sink_mass: weight on learned sinks [B, H, T].
        own_token_mass, previous_token_mass: weight of each query on its own token, and on the one before it [B, H, T].
        row_mass: sum of a row's weights as used, those on what has no value left out [B, H, T].
        lse: log of what a row is divided by [B, H, T].
        entropy: of a row in nats, learned sinks included [B, H, T].
        max_logit: largest score of a row [B, H, T].
        learned_sinks: number of learned sinks that count as keys in the entropy.
        gate: values of the output gate [B, H, T] or [B, H, T, head_dim].
        out_weight: weight of the output projection [D, H * head_dim].
        key_mass: mass each key receives from all queries [B, H, T].
        value_norms: norm of each value times the head's output projection [B, H, T].
        value_norm_sums: sums of these by the weights of each query [B, H, T].
        relative_value_norms: norm of each value over the median of its row and key head, w [B, H, T].
        used, excess: sums of w and of max(0, w - 1) by the weights of each query [B, H, T].
        learned_value_norm: w of a learned value [B, H, T].
        own_value_norms: w of each query's own value, in place of `relative_value_norms` [B, H, T]; None where it is
            that, as without exclusive self-attention.
        gate_gain: norm of the gated output of a head over that before the gate [B, H, T].
        row_normalized: whether weights of a row, learned sinks included, sum to one; otherwise all masses and sums by
            weights are those of the row divided by `row_mass`.
        masses: q, k, lse of parts of rows -> `key_mass` within the parts [B, H, T], None where it is not defined.
        within: q, k, v of parts of rows -> weight of each query on the first token of its part and lse, both [B, H, T],
            of attention within the part. None where a weight is not a function of its own score over exp(lse).
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    first_token_mass: Tensor | None = None
    learned_sink_mass: Tensor | None = None
    own_token_mass: Tensor | None = None
    previous_token_mass: Tensor | None = None
    row_mass: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    max_logit: Tensor | None = None
    learned_sinks: int = 0
    gate: Tensor | None = None
    out_weight: Tensor | None = None
    key_mass: Tensor | None = None
    value_norms: Tensor | None = None
    value_norm_sums: Tensor | None = None
    relative_value_norms: Tensor | None = None
    used: Tensor | None = None
    excess: Tensor | None = None
    learned_value_norm: Tensor | None = None
    own_value_norms: Tensor | None = None
    gate_gain: Tensor | None = None
    row_normalized: bool = True
    masses: Callable[[Tensor, Tensor, Tensor], Tensor | None] | None = None
    within: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def route_inputs(self) -> functional.RouteInputs:
        """What `functional.routes` reads, of the weights as used."""
        assert self.used is not None and self.excess is not None and self.row_mass is not None  # noqa: PT018
        assert self.first_token_mass is not None and self.own_token_mass is not None  # noqa: PT018
        assert self.relative_value_norms is not None
        raw = 1.0 if self.row_normalized else self.row_mass.float()
        has_value = self.learned_value_norm is not None
        inputs = functional.RouteInputs(
            used=raw * self.used.float(),
            excess=raw * self.excess.float(),
            row_mass=self.row_mass.float(),
            first=raw * self.first_token_mass.float(),
            own=raw * self.own_token_mass.float(),
            relative=self.relative_value_norms.float(),
            gain=None if self.gate_gain is None else self.gate_gain.float(),
            learned=self.learned_sink_mass if has_value else None,
            learned_relative=self.learned_value_norm,
        )
        own = self.own_value_norms
        return inputs if own is None else functional.with_own_relative(inputs, own.float())

    def of_documents(self, documents: Documents) -> "list[AttentionRecord]":
        """Records of attention that runs across documents: weights are those of whole rows.

        Returns:
            First what concerns whole rows: entropy and largest logit. Then, of the documents of each length, what their
            own queries put on their own keys; `value_norm_sums` hold what other documents add.
        """
        rows = AttentionRecord(entropy=self.entropy, max_logit=self.max_logit, learned_sinks=self.learned_sinks)
        own = replace(self, entropy=None, max_logit=None)
        if self.within is None:
            own = replace(own, first_token_mass=None, key_mass=None)
        names = (
            "q", "k", "v", "first_token_mass", "learned_sink_mass", "own_token_mass", "previous_token_mass", "row_mass",
            "lse", "gate", "key_mass", "value_norms", "value_norm_sums", "relative_value_norms", "used", "excess",
            "learned_value_norm", "own_value_norms", "gate_gain",
        )  # fmt: skip
        return [rows, *(part._from_own_tokens() for part in _split(own, names, documents, dim=2))]

    def _from_own_tokens(self) -> "AttentionRecord":
        """The same, with the masses on the document's first token and on its keys in place of the row's."""
        if self.first_token_mass is None and self.key_mass is None:
            return self
        q, k, v, lse, first, keys = self.q, self.k, self.v, self.lse, self.first_token_mass, self.key_mass
        assert self.within is not None and q is not None and k is not None and v is not None and lse is not None  # noqa: PT018
        if first is not None:
            mass, lse_within = self.within(q, k, v)
            first = mass * (lse_within - lse).exp()
        if keys is not None:
            assert self.masses is not None
            keys = self.masses(q, k, lse)
        return replace(self, first_token_mass=first, key_mass=keys)


@dataclass
class ClipRecord:
    """Of a clip of the residual stream.

    Args:
        clipped: which values are clipped [B, T, D] bool.
    """

    clipped: Tensor

    def of_documents(self, documents: Documents) -> "list[ClipRecord]":
        """Itself: no token is apart."""
        return [self]


@dataclass
class UpdateRecord:
    """Of a sublayer's addition to the residual stream.

    Args:
        residual: what the update is added to [B, T, D].
        update: the sublayer's output [B, T, D].
    """

    residual: Tensor
    update: Tensor

    def of_documents(self, documents: Documents) -> "list[UpdateRecord]":
        """A record of the documents of each length, as rows."""
        return _split(self, ("residual", "update"), documents)


Record = NormRecord | AttentionRecord | ClipRecord | UpdateRecord
Split = TypeVar("Split", NormRecord, AttentionRecord, UpdateRecord)


def _split(record: Split, names: tuple[str, ...], documents: Documents, dim: int = 1) -> list[Split]:
    """A record of the documents of each length; fields that are not named are shared."""
    given = {name: getattr(record, name) for name in names if getattr(record, name) is not None}
    return [replace(record, **part) for part in documents.split(given, dim)]  # type: ignore[arg-type]
