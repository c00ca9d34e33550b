"""Which statistics are read where: each group turns a site's record into moments, and moments into statistics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sinks.observe.records import NormRecord
from sinks.observe.sites import Kind
from sinks.stats import functional
from sinks.stats.moments import Moments


@dataclass(frozen=True)
class Group:
    """One group of statistics.

    Args:
        name: what it is switched on by.
        kind: of the sites it is read at.
        section: prefix of its keys.
        needs: fields of the record that it reads; at a site where one is None the group is absent.
        moments: record and the site's sink dimensions [K] (None before the first choice) -> moments, or None where they
            are not defined.
        statistics: summed moments -> statistics of the site.
    """

    name: str
    kind: Kind
    section: str
    needs: tuple[str, ...]
    moments: Callable[[Any, Tensor | None], Moments | None]
    statistics: Callable[[Moments], dict[str, Tensor]]

    def read(self, record: Any, dimensions: Tensor | None) -> Moments | None:
        """Moments of a record, None where the site does not have what they are made of."""
        if any(getattr(record, field) is None for field in self.needs):
            return None
        return self.moments(record, dimensions)


def _rescale_moments(record: NormRecord, dimensions: Tensor | None) -> Moments | None:
    """Energy at the sink dimensions before the norm, and after it, gate included."""
    if dimensions is None:
        return None
    before = functional.sink_dimension_moments(record.input, dimensions)
    after = functional.output_share_moments(record.output, dimensions)
    return {f"before_{n}": m for n, m in before.items()} | {f"after_{n}": m for n, m in after.items()}


def _rescale_statistics(moments: Moments) -> dict[str, Tensor]:
    def part(prefix: str) -> Moments:
        return {n.removeprefix(prefix): m for n, m in moments.items() if n.startswith(prefix)}

    before = functional.sink_dimension_statistics(part("before_"))
    after = functional.output_share_statistics(part("after_"))
    index = functional.rescale_contribute_index(before["energy_share"], after["output_share"])
    wanted = ("energy_share", "rescale", "rescale_cv")
    return {n: before[n] for n in wanted} | {"output_share": after["output_share"], "rescale_contribute_index": index}


def _bound_moments(record: Any, dimensions: Tensor | None) -> Moments | None:
    if dimensions is None:
        return None
    return functional.bound_moments(record.divided, record.normalized, record.weight, dimensions)


def _contribution_moments(record: Any, dimensions: Tensor | None) -> Moments | None:
    """The values are one-hot norms; renormalizing takes one more channel, for the row's total mass."""
    n_heads, n_kv_heads, head_dim = record.q.shape[1], record.v.shape[1], record.v.shape[3]
    if n_heads // n_kv_heads + (not record.row_normalized) > head_dim:
        return None
    norms = functional.projected_value_norms(record.v, record.out_weight, n_heads)
    mixed = record.attend(functional.contribution_values(norms, n_kv_heads, head_dim))
    totals = functional.contribution_totals(mixed, n_kv_heads, renormalize=not record.row_normalized)
    return functional.contribution_moments(record.first_token_mass, norms, totals)


def _clip_statistics(moments: Moments) -> dict[str, Tensor]:
    return {"clipped_share": functional.share_statistics(moments)["share"]}


def _clip_moments(record: Any, dimensions: Tensor | None) -> Moments:
    return functional.share_moments(record.clipped)


def _norm_groups() -> list[Group]:
    def group(name: str, section: str, needs: tuple[str, ...], moments: Any, statistics: Any) -> Group:
        return Group(name, "norm", section, needs, moments, statistics)

    return [
        group("residual", "residual", (), lambda r, d: functional.residual_moments(r.input, r.median),
              functional.residual_statistics),
        group("massive", "residual", (), lambda r, d: functional.massive_moments(r.input, r.median),
              functional.massive_statistics),
        group("kurtosis", "residual", (), lambda r, d: functional.kurtosis_moments(r.input),
              functional.kurtosis_statistics),
        group("energy", "residual", (), lambda r, d: functional.energy_moments(r.input), functional.energy_statistics),
        group("rescale", "residual", (), _rescale_moments, _rescale_statistics),
        group("bound", "norm", ("divided", "normalized", "weight"), _bound_moments, functional.bound_statistics),
        group("gain", "norm", ("gain",), lambda r, d: {"gain_max": r.gain.float().abs()},
              lambda moments: {"gain": moments["gain_max"]}),
        group("norm_gate", "norm", ("gate",), lambda r, d: functional.norm_gate_moments(r.gate, r.input.shape[-1]),
              functional.norm_gate_statistics),
        group("gate_magnitude", "norm", ("gate", "normed"),
              lambda r, d: functional.gate_magnitude_moments(r.gate, r.normed), functional.gate_magnitude_statistics),
        group("norm_clip", "residual", ("clipped",), _clip_moments, _clip_statistics),
    ]  # fmt: skip


def _attention_groups() -> list[Group]:
    def group(name: str, needs: tuple[str, ...], moments: Any, statistics: Any) -> Group:
        return Group(name, "attention", "attention", needs, moments, statistics)

    return [
        group("mass", ("first_token_mass", "learned_sink_mass"),
              lambda r, d: functional.attention_moments(r.first_token_mass, r.learned_sink_mass),
              functional.attention_statistics),
        group("rows", ("entropy", "max_logit"),
              lambda r, d: functional.attention_row_moments(r.entropy, r.max_logit, sinks=r.learned_sinks),
              functional.attention_row_statistics),
        group("keys", ("key_mass",), lambda r, d: functional.key_mass_moments(r.key_mass),
              functional.key_mass_statistics),
        group("values", ("v",), lambda r, d: functional.value_moments(r.v), functional.value_statistics),
        group("contribution", ("q", "v", "first_token_mass", "out_weight", "attend"), _contribution_moments,
              functional.contribution_statistics),
        group("attention_gate", ("gate",), lambda r, d: functional.attention_gate_moments(r.gate),
              functional.attention_gate_statistics),
    ]  # fmt: skip


GROUPS = {
    group.name: group
    for group in (
        *_norm_groups(),
        Group("stream_clip", "clip", "residual", (), _clip_moments, _clip_statistics),
        *_attention_groups(),
    )
}
