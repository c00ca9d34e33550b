"""Which statistics are read where: each group turns what a tap reports into moments, and moments into statistics.

A norm reports `input` (the residual stream it reads), `normed` (its output before any gate), `output`, and where it has
them `gain`, `divided` and `weight`, `gate`, `clipped`; the callback adds the tokens' `median` |h|, once for all groups.
Attention reports `q`, `k`, `v`, `out_weight`, its row statistics, and where it has one `gate`; its moments are scalars,
or have heads first. A group that finds nothing to read at a site is left out there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sink_kernels import key_mass
from torch import Tensor

from sinks.models.attention import Attention
from sinks.stats import functional
from sinks.stats.moments import Moments

Record = dict[str, Tensor]
Kind = Literal["norm", "attention", "clip"]


@dataclass(frozen=True)
class Group:
    """One group of statistics.

    Args:
        name: what it is switched on by.
        kind: of the sites it is read at.
        section: prefix of its keys.
        moments: record, the site's module and its sink dimensions [K] (None before the first choice) -> moments, or
            None if the site has nothing to read.
        statistics: summed moments -> statistics of the site.
    """

    name: str
    kind: Kind
    section: str
    moments: Callable[[Record, Any, Tensor | None], Moments | None]
    statistics: Callable[[Moments], dict[str, Tensor]]


def _rescale_moments(record: Record, module: Any, dimensions: Tensor | None) -> Moments | None:
    """Energy at the sink dimensions before the norm, and after it, gate included."""
    if dimensions is None:
        return None
    before = functional.sink_dimension_moments(record["input"], dimensions)
    after = functional.output_share_moments(record["output"], dimensions)
    return {f"before_{n}": m for n, m in before.items()} | {f"after_{n}": m for n, m in after.items()}


def _rescale_statistics(moments: Moments) -> dict[str, Tensor]:
    def part(prefix: str) -> Moments:
        return {n.removeprefix(prefix): m for n, m in moments.items() if n.startswith(prefix)}

    before = functional.sink_dimension_statistics(part("before_"))
    after = functional.output_share_statistics(part("after_"))
    index = functional.rescale_contribute_index(before["energy_share"], after["output_share"])
    wanted = ("energy_share", "rescale", "rescale_cv")
    return {n: before[n] for n in wanted} | {"output_share": after["output_share"], "rescale_contribute_index": index}


def _bound_moments(record: Record, module: Any, dimensions: Tensor | None) -> Moments | None:
    if dimensions is None or "divided" not in record:
        return None
    return functional.bound_moments(record["divided"], record["normed"], record["weight"], dimensions)


def _key_moments(record: Record, module: Attention, dimensions: Tensor | None) -> Moments | None:
    if module.normalizer.first_token:
        return None  # a learned key stands before the first token
    options = {k: v for k, v in module.normalizer.options().items() if k != "sink"}
    mass = key_mass(record["q"], record["k"], record["lse"], **options)
    return functional.key_mass_moments(mass)


def _contribution_moments(record: Record, module: Attention, dimensions: Tensor | None) -> Moments | None:
    """The values are one-hot norms; renormalising takes one more channel, for the row's total mass."""
    if module.normalizer.first_token:
        return None
    n_heads, n_kv_heads, head_dim = record["q"].shape[1], record["v"].shape[1], record["v"].shape[3]
    norms = functional.projected_value_norms(record["v"], record["out_weight"], n_heads)
    values = functional.contribution_values(norms, n_kv_heads, head_dim)
    mixed = module.normalizer.attend(record["q"].float(), record["k"].float(), values, None)
    totals = functional.contribution_totals(mixed, n_kv_heads, renormalise=module.normalizer.reports_shares)
    return functional.contribution_moments(record["first_token_mass"], norms, totals)


GROUPS = {
    group.name: group
    for group in (
        Group("residual", "norm", "residual", lambda r, m, d: functional.residual_moments(r["input"], r["median"]),
              functional.residual_statistics),
        Group("massive", "norm", "residual", lambda r, m, d: functional.massive_moments(r["input"], r["median"]),
              functional.massive_statistics),
        Group("kurtosis", "norm", "residual", lambda r, m, d: functional.kurtosis_moments(r["input"]),
              functional.kurtosis_statistics),
        Group("energy", "norm", "residual", lambda r, m, d: functional.energy_moments(r["input"]),
              functional.energy_statistics),
        Group("rescale", "norm", "residual", _rescale_moments, _rescale_statistics),
        Group("bound", "norm", "norm", _bound_moments, functional.bound_statistics),
        Group("gain", "norm", "norm", lambda r, m, d: {"gain_max": r["gain"].float().abs()} if "gain" in r else None,
              lambda moments: {"gain": moments["gain_max"]}),
        Group("norm_gate", "norm", "norm",
              lambda r, m, d: functional.norm_gate_moments(r["gate"], r["input"].shape[-1]) if "gate" in r else None,
              functional.norm_gate_statistics),
        Group("gate_magnitude", "norm", "norm",
              lambda r, m, d: functional.gate_magnitude_moments(r["gate"], r["normed"]) if "gate" in r else None,
              functional.gate_magnitude_statistics),
        Group("norm_clip", "norm", "residual",
              lambda r, m, d: functional.share_moments(r["clipped"]) if "clipped" in r else None,
              lambda moments: {"clipped_share": functional.share_statistics(moments)["share"]}),
        Group("stream_clip", "clip", "residual", lambda r, m, d: functional.share_moments(r["clipped"]),
              lambda moments: {"clipped_share": functional.share_statistics(moments)["share"]}),
        Group("mass", "attention", "attention",
              lambda r, m, d: functional.attention_moments(r["first_token_mass"], r["learned_sink_mass"]),
              functional.attention_statistics),
        Group("rows", "attention", "attention",
              lambda r, m, d: functional.attention_row_moments(
                  r["entropy"], r["max_logit"], sinks=m.normalizer.learned_sinks),
              functional.attention_row_statistics),
        Group("keys", "attention", "attention", _key_moments, functional.key_mass_statistics),
        Group("values", "attention", "attention", lambda r, m, d: functional.value_moments(r["v"]),
              functional.value_statistics),
        Group("contribution", "attention", "attention", _contribution_moments, functional.contribution_statistics),
        Group("attention_gate", "attention", "attention",
              lambda r, m, d: functional.attention_gate_moments(r["gate"]) if "gate" in r else None,
              functional.attention_gate_statistics),
    )
}  # fmt: skip
