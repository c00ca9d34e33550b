"""From the accumulators of all sites to arrays over sites, and to the scalars that are logged."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sinks.observe.groups import GROUPS
from sinks.observe.sites import Kind
from sinks.record import Statistics
from sinks.stats import functional
from sinks.stats.accumulators import Accumulators

Key = tuple[str, str]  # site, group


@dataclass(frozen=True)
class Scalar:
    """A number out of an array over sites.

    Args:
        array: name of the array [sites, ...].
        reduction: over all values that are not NaN: mean, max, sum; or the value at the site of the strongest sink.
    """

    array: str
    reduction: str


SCALARS = {
    "attention/first_token_mass": Scalar("attention/first_token_mass", "mean"),
    "attention/first_token_mass_max_head": Scalar("attention/first_token_mass", "max"),
    "attention/first_token_mass_with_first_row": Scalar("attention/first_token_mass_with_first_row", "mean"),
    **{
        f"attention/sink_ratio_{eps}": Scalar(f"attention/sink_ratio_{eps}", "mean")
        for eps in functional.SINK_THRESHOLDS
    },
    "attention/sink_ratio_nyu": Scalar("attention/sink_nyu", "mean"),
    "attention/effective_rescale": Scalar("attention/effective_rescale", "mean"),
    "attention/effective_rescale_cv": Scalar("attention/effective_rescale_cv", "mean"),
    "attention/entropy": Scalar("attention/entropy", "mean"),
    "attention/entropy_share": Scalar("attention/entropy_share", "mean"),
    "attention/max_logit": Scalar("attention/logit_max", "max"),
    "attention/value_norm_ratio": Scalar("attention/value_norm_ratio", "mean"),
    "attention/contribution_share": Scalar("attention/contribution_share", "mean"),
    "attention/contribution_over_mass": Scalar("attention/contribution_over_mass", "mean"),
    "attention/own_token_mass": Scalar("attention/own_token_mass", "mean"),
    "attention/previous_token_mass": Scalar("attention/previous_token_mass", "mean"),
    "attention/effective_weight": Scalar("attention/effective_weight", "mean"),
    "attention/effective_weight_cv": Scalar("attention/effective_weight_cv", "mean"),
    **{
        f"attention/{name}": Scalar(f"attention/{name}", "mean")
        for name in (
            "closed",
            "missing",
            "lost_first",
            "lost_own",
            "lost_other",
            "lost_learned",
            "excess",
            "gate_gain",
            "first_token_weight",
            "own_token_weight",
        )
    },
    "attention/gate_mean": Scalar("attention/gate_mean", "mean"),
    "attention/gate_closed": Scalar("attention/gate_closed", "mean"),
    "attention/gate_first_over_rest": Scalar("attention/gate_first_over_rest", "mean"),
    "residual/max_over_median": Scalar("residual/max_over_median", "max"),
    "residual/max_median_ratio": Scalar("residual/max_median_ratio", "max"),
    "residual/massive_activations": Scalar("residual/massive_per_token_median", "sum"),
    **{
        f"residual/massive_relative_{limit}": Scalar(f"residual/relative_{limit}_per_token_median", "sum")
        for limit in (100, 300, 1000)
    },
    "residual/sink_score": Scalar("residual/sink_score", "strongest"),
    "residual/sink_consistency": Scalar("residual/sink_consistency", "strongest"),
    "residual/kurtosis": Scalar("residual/kurtosis", "max"),
    "residual/kurtosis_neuron": Scalar("residual/kurtosis_neuron", "max"),
    "residual/kurtosis_osp": Scalar("residual/kurtosis_osp", "max"),
    **{f"residual/energy_top_{k}": Scalar(f"residual/energy_top_{k}", "strongest") for k in (1, 4, 16)},
    "residual/p999": Scalar("residual/p999", "max"),
    "residual/top_permille": Scalar("residual/top_permille", "mean"),
    "residual/sink_energy_share": Scalar("residual/energy_share", "strongest"),
    "residual/rescale": Scalar("residual/rescale", "strongest"),
    "residual/rescale_cv": Scalar("residual/rescale_cv", "strongest"),
    "residual/sink_output_share": Scalar("residual/output_share", "strongest"),
    "residual/rescale_contribute_index": Scalar("residual/rescale_contribute_index", "strongest"),
    "residual/clipped_share": Scalar("residual/clipped_share", "mean"),
    "residual/nonfinite": Scalar("residual/nonfinite", "sum"),
    "update/ratio": Scalar("update/ratio", "mean"),
    "update/ratio_first_token": Scalar("update/ratio_first_token", "max"),
    "update/cosine": Scalar("update/cosine", "mean"),
    "update/cosine_first_token": Scalar("update/cosine_first_token", "mean"),
    "output_norm/max_over_median": Scalar("output_norm/max_over_median", "max"),
    "output_norm/kurtosis": Scalar("output_norm/kurtosis", "max"),
    "norm/bound": Scalar("norm/bound_max", "max"),
    "norm/effective_scale": Scalar("norm/effective_scale", "mean"),
    "norm/effective_scale_cv": Scalar("norm/effective_scale_cv", "mean"),
    "norm/gate_mean": Scalar("norm/gate_mean", "mean"),
    "norm/gate_correlation": Scalar("norm/gate_correlation", "mean"),
    "norm/gate_top_over_bottom": Scalar("norm/gate_top_over_bottom", "mean"),
}


def summarize(
    accumulators: dict[Key, Accumulators], sites: Mapping[Kind, list[str]], dimensions: dict[str, Tensor], step: int
) -> tuple[dict[str, float], Statistics]:
    """Scalars under `group/name`, and arrays [1, sites, ...].

    Args:
        accumulators: totals over batches and ranks, of each site and group.
        sites: names of the sites of each kind, in order: axis 1 of the arrays.
        dimensions: sink dimensions [K] used at each norm site.
        step: optimizer step.
    """
    arrays: dict[str, Tensor] = {}
    for group in GROUPS.values():
        found = {site: group.statistics(m) for (site, name), m in accumulators.items() if name == group.name}
        if found:
            names = dict.fromkeys(name for statistics in found.values() for name in statistics)
            arrays |= {
                f"{group.section}/{name}": stack({s: f[name] for s, f in found.items() if name in f}, sites[group.kind])
                for name in names
                if name != "nonfinite" or group.name == "residual"
            }
    if "attention/learned_sink_mass" in arrays and not arrays["attention/learned_sink_mass"].any():
        del arrays["attention/learned_sink_mass"]
    if dimensions:
        arrays["residual/sink_dimensions"] = stack({s: d.float() for s, d in dimensions.items()}, sites["norm"])

    strongest = strongest_site(arrays["residual/sink_score"]) if "residual/sink_score" in arrays else None
    scalars: dict[str, Tensor] = {}
    for key, scalar in SCALARS.items():
        if scalar.array in arrays and (strongest is not None or scalar.reduction != "strongest"):
            scalars[key] = reduce(arrays[scalar.array], scalar.reduction, strongest)
    scalars |= derived(arrays, sites["norm"], strongest)
    listed = {
        "residual": [f"{site}.input" for site in sites["norm"]],
        "norm": sites["norm"],
        "attention": sites["attention"],
        "update": sites["update"],
        **({"output_norm": sites["output_norm"]} if sites["output_norm"] else {}),
    }
    return (
        {name: float(value) for name, value in scalars.items()},
        Statistics(torch.tensor([step]).numpy(), {name: array[None].numpy() for name, array in arrays.items()}, listed),
    )


def stack(values: dict[str, Tensor], sites: list[str]) -> Tensor:
    """[sites, ...] in float32, NaN where a site has no value."""
    example = next(iter(values.values()))
    nothing = torch.full_like(example, torch.nan, dtype=torch.float32)
    return torch.stack([values[site].float() if site in values else nothing for site in sites])


def strongest_site(scores: Tensor) -> int:
    """Index of the norm site with the largest residual-sink score; the first one reads the bare embedding."""
    first = 1 if len(scores) > 1 else 0
    return int(scores[first:].nan_to_num(-1.0).argmax()) + first


def reduce(array: Tensor, reduction: str, strongest: int | None) -> Tensor:
    """One number of an array [sites, ...]."""
    if reduction == "strongest":
        assert strongest is not None
        return array[strongest]
    known = array[~array.isnan()]
    if not len(known):
        return torch.tensor(torch.nan)
    if reduction == "max":
        return known.max()
    return known.mean() if reduction == "mean" else known.sum()


def derived(arrays: dict[str, Tensor], norms: list[str], strongest: int | None) -> dict[str, Tensor]:
    """Scalars that need more than one array."""
    scalars: dict[str, Tensor] = {}
    if strongest is not None:
        max_abs = arrays["residual/max_abs"]
        scalars["residual/max_abs_first_token"], scalars["residual/max_abs"] = max_abs[:, 0].max(), max_abs[:, 1].max()
        persistence = functional.persistence_statistics(arrays["residual/mean_abs"], arrays["residual/argmax_share"])
        scalars["residual/sink_persistence"] = persistence["persistence"]
        scalars["residual/sink_sites"] = persistence["sink_sites"]
    if {"attention/first_token_mass", "attention/value_norm_ratio"} <= arrays.keys():
        mass, ratio = arrays["attention/first_token_mass"], arrays["attention/value_norm_ratio"]
        layer, head = divmod(int(mass.nan_to_num(-1.0).argmax()), mass.shape[1])
        scalars["attention/value_norm_ratio_max_head"] = ratio[layer, head * ratio.shape[1] // mass.shape[1]]
    if "attention/learned_sink_mass" in arrays:
        scalars["attention/learned_sink_mass"] = arrays["attention/learned_sink_mass"].mean()
    if "norm/gain" in arrays and strongest is not None:
        scores, sinks = arrays["residual/sink_score"], arrays["residual/mean_abs"].argmax(-1)
        at_sink = torch.stack(
            [functional.gain_at_sink(gain, sink) for gain, sink in zip(arrays["norm/gain"], sinks, strict=True)]
        )
        strong = (scores >= 0.8 * scores[strongest]) & at_sink.isfinite()
        for kind in ("", "attention", "feed_forward"):
            chosen = at_sink[strong & torch.tensor([kind in norm for norm in norms])]
            if len(chosen):
                scalars["norm/gain_at_sink" + (f"_{kind}" if kind else "")] = chosen.median()
    return scalars
