"""How much of a normalized token a few channels hold: u = h / rms(h), so that sum_j u_j^2 = D."""

import torch
from torch import Tensor

from sinks.stats.functional.histogram import histogram_quantile, magnitude_histogram
from sinks.stats.functional.order import largest
from sinks.stats.functional.sums import narrow, nonfinite, number, total

TOP_CHANNELS = (1, 4, 16)


def largest_channels(h: Tensor) -> Tensor:
    """The largest |h_j| of each token of h [B, T, D] in descending order [B, T, max(TOP_CHANNELS)], or all D."""
    return largest(h.float().abs(), min(max(TOP_CHANNELS), h.shape[-1]))


def energy_accumulators(h: Tensor, largest: Tensor | None = None) -> dict[str, Tensor]:
    """Accumulators of the energy of the largest channels of h [B, T, D], over tokens but token 0.

    The largest channels are found per token; `sink_dimension_accumulators` keeps them fixed.

    Args:
        h: the residual stream.
        largest: `largest_channels(h)`, if already computed.

    Returns:
        tokens, nonfinite: number of those tokens, and of their NaN and infinite values.
        top_{k}_sum: sum over tokens of E_k, the fraction of sum_j h_j^2 in the k largest channels (all if k > D).
        peak_sum, peak_max: sum and maximum over tokens of max_j |u_j|; -inf without tokens.
        peak_histogram: [HISTOGRAM_BINS] of max_j |u_j|, one value per token.
    """
    channels = h.shape[-1]
    energy = h[:, 1:].float().square().sum(-1)
    found = largest_channels(h) if largest is None else largest
    ordered = found[:, 1:].square() / energy.unsqueeze(-1)
    peak = (ordered[..., 0] * channels).sqrt()
    return {
        "tokens": number(energy.numel(), h),
        "nonfinite": nonfinite(h[:, 1:]),
        "peak_sum": total(peak),
        "peak_max": peak.max() if energy.numel() else torch.full((), -torch.inf, device=h.device),
        "peak_histogram": magnitude_histogram(peak),
    } | {f"top_{k}_sum": total(ordered[..., :k].sum(-1)) for k in TOP_CHANNELS}


def energy_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `energy_accumulators`; a token of zeros makes all of it NaN.

    Returns:
        energy_top_{k}: mean E_k, in [k / D, 1].
        peak_mean, peak_max: mean and largest max_j |u_j|, in [1, sqrt(D)].
        peak_p50, peak_p99: its quantiles over tokens, from the histogram (resolution 4.4 %).
    """
    tokens, largest = accumulators["tokens"], accumulators["peak_max"]
    found = {
        f"energy_{name.removesuffix('_sum')}": x / tokens for name, x in accumulators.items() if name.startswith("top_")
    }
    undefined = ~torch.isfinite(accumulators["peak_sum"])
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):
        edge = histogram_quantile(accumulators["peak_histogram"], quantile)
        found[f"peak_{name}"] = torch.where(undefined, torch.nan, edge)
    return narrow(
        found
        | {
            "peak_mean": accumulators["peak_sum"] / tokens,
            "peak_max": torch.where(largest == -torch.inf, torch.nan, largest),
            "nonfinite": accumulators["nonfinite"],
        }
    )
