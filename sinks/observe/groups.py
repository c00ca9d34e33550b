"""Groups of statistics: each turns the records of a kind of site into accumulators, and these into statistics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sinks.observe.records import NormRecord
from sinks.observe.sites import Kind
from sinks.stats import functional
from sinks.stats.accumulators import Accumulators


@dataclass(frozen=True)
class Group:
    """One group of statistics.

    Args:
        name: by which it is selected.
        kind: of its sites.
        section: prefix of its keys.
        needs: fields of the record that it reads; at a site where one is None the group is absent.
        optional: further fields that it reads where they are available.
        accumulators: record and the site's sink dimensions [K] (None before the first choice) -> accumulators, or None
            where undefined.
        statistics: summed accumulators -> statistics of the site.
    """

    name: str
    kind: Kind
    section: str
    needs: tuple[str, ...]
    accumulators: Callable[[Any, Tensor | None], Accumulators | None]
    statistics: Callable[[Accumulators], dict[str, Tensor]]
    optional: tuple[str, ...] = ()

    def read(self, record: Any, dimensions: Tensor | None) -> Accumulators | None:
        """Accumulators of a record, None where a field that they need is not available."""
        if any(getattr(record, field) is None for field in self.needs):
            return None
        return self.accumulators(record, dimensions)


def _rescale_accumulators(record: NormRecord, dimensions: Tensor | None) -> Accumulators | None:
    """Energy at the sink dimensions before the norm, and after it, gate included."""
    if dimensions is None:
        return None
    before = functional.sink_dimension_accumulators(record.input, dimensions)
    assert record.output is not None  # the group needs it
    after = functional.output_share_accumulators(record.output, dimensions)
    return {f"before_{n}": m for n, m in before.items()} | {f"after_{n}": m for n, m in after.items()}


def _rescale_statistics(accumulators: Accumulators) -> dict[str, Tensor]:
    def part(prefix: str) -> Accumulators:
        return {n.removeprefix(prefix): m for n, m in accumulators.items() if n.startswith(prefix)}

    before = functional.sink_dimension_statistics(part("before_"))
    after = functional.output_share_statistics(part("after_"))
    index = functional.rescale_contribute_index(before["energy_share"], after["output_share"])
    wanted = ("energy_share", "rescale", "rescale_cv")
    return {n: before[n] for n in wanted} | {"output_share": after["output_share"], "rescale_contribute_index": index}


def _bound_accumulators(record: Any, dimensions: Tensor | None) -> Accumulators | None:
    if dimensions is None:
        return None
    return functional.bound_accumulators(record.divided, record.normalized, record.weight, dimensions)


def _scale_accumulators(record: Any, dimensions: Tensor | None) -> Accumulators | None:
    if dimensions is None:
        return None
    return functional.scale_accumulators(record.input, record.output, record.gain, dimensions)


def _clip_accumulators(record: Any, dimensions: Tensor | None) -> Accumulators:
    return functional.share_accumulators(record.clipped)


def _clip_statistics(accumulators: Accumulators) -> dict[str, Tensor]:
    return {"clipped_share": functional.share_statistics(accumulators)["share"]}


GROUPS = {group.name: group for group in (
    Group("residual", "norm", "residual", (), lambda r, d: functional.residual_accumulators(r.input, r.median),
          functional.residual_statistics),
    Group("massive", "norm", "residual", (),
          lambda r, d: functional.massive_accumulators(r.input, r.median, r.sample_median),
          functional.massive_statistics),
    Group("kurtosis", "norm", "residual", (), lambda r, d: functional.kurtosis_accumulators(r.input),
          functional.kurtosis_statistics),
    Group("energy", "norm", "residual", (), lambda r, d: functional.energy_accumulators(r.input, r.largest),
          functional.energy_statistics),
    Group("rescale", "norm", "residual", ("output",), _rescale_accumulators, _rescale_statistics),
    Group("bound", "norm", "norm", ("divided", "normalized", "weight"), _bound_accumulators,
          functional.bound_statistics),
    Group("gain", "norm", "norm", ("gain",), lambda r, d: {"gain_max": r.gain.float().abs()},
          lambda accumulators: {"gain": accumulators["gain_max"]}),
    # Only of a norm that divides by the RMS: a pointwise one has no scale that all dimensions share.
    Group("scale", "norm", "norm", ("output", "gain", "divided"), _scale_accumulators, functional.scale_statistics),
    Group("norm_gate", "norm", "norm", ("gate",),
          lambda r, d: functional.norm_gate_accumulators(r.gate, r.input.shape[-1]), functional.norm_gate_statistics),
    Group("gate_magnitude", "norm", "norm", ("gate", "normed"),
          lambda r, d: functional.gate_magnitude_accumulators(r.gate, r.normed), functional.gate_magnitude_statistics),
    Group("norm_clip", "norm", "residual", ("clipped",), _clip_accumulators, _clip_statistics),
    Group("stream_clip", "clip", "residual", (), _clip_accumulators, _clip_statistics),
    Group("output_norm", "output_norm", "output_norm", (),
          lambda r, d: functional.residual_accumulators(r.input, r.median), functional.residual_statistics),
    Group("output_gain", "output_norm", "output_norm", ("gain",), lambda r, d: {"gain_max": r.gain.float().abs()},
          lambda accumulators: {"gain": accumulators["gain_max"]}),
    Group("update", "update", "update", (), lambda r, d: functional.update_accumulators(r.residual, r.update),
          functional.update_statistics),
    Group("mass", "attention", "attention", ("first_token_mass", "learned_sink_mass"),
          lambda r, d: functional.attention_accumulators(r.first_token_mass, r.learned_sink_mass),
          functional.attention_statistics),
    Group("rows", "attention", "attention", ("entropy", "max_logit"),
          lambda r, d: functional.attention_row_accumulators(r.entropy, r.max_logit, sinks=r.learned_sinks),
          functional.attention_row_statistics),
    Group("keys", "attention", "attention", ("key_mass",), lambda r, d: functional.key_mass_accumulators(r.key_mass),
          functional.key_mass_statistics),
    Group("values", "attention", "attention", ("v",), lambda r, d: functional.value_accumulators(r.v),
          functional.value_statistics),
    Group("contribution", "attention", "attention", ("first_token_mass", "value_norms", "value_norm_sums"),
          lambda r, d: functional.contribution_accumulators(r.first_token_mass, r.value_norms, r.value_norm_sums),
          functional.contribution_statistics),
    Group("neighbors", "attention", "attention", ("own_token_mass", "previous_token_mass"),
          lambda r, d: functional.neighbor_accumulators(r.own_token_mass, r.previous_token_mass),
          functional.neighbor_statistics),
    Group("routes", "attention", "attention",
          ("used", "excess", "relative_value_norms", "row_mass", "first_token_mass", "own_token_mass"),
          lambda r, d: functional.route_accumulators(r.route_inputs()), functional.route_statistics,
          ("gate_gain", "learned_value_norm", "learned_sink_mass", "own_value_norms")),
    Group("attention_gate", "attention", "attention", ("gate",),
          lambda r, d: functional.attention_gate_accumulators(r.gate), functional.attention_gate_statistics),
)}  # fmt: skip
