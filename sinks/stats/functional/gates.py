"""Gates: of attention outputs (arXiv:2505.06708), of norms (arXiv:2601.22966), and fractions reported once per pass."""

import torch
from torch import Tensor

from sinks.stats.functional.histogram import HISTOGRAM_BINS, magnitude_bins
from sinks.stats.functional.sums import (
    channel_total,
    narrow,
    nonfinite,
    number,
    occurrences,
    quotient,
    spread,
    total,
    wide,
)

# A gate smaller than this counts as closed.
CLOSED = 0.1
DECILES = 10


def attention_gate_accumulators(gate: Tensor) -> dict[str, Tensor]:
    """Accumulators of gate values g, [B, H, T] or [B, H, T, head_dim].

    Returns:
        count, first_count: values of each head at all tokens, and at token 0 alone.
        gate_sum, square_sum, closed_sum: [H] sums of g, g^2 and [|g| < 0.1] over all tokens.
        first_sum, rest_sum: [H] sums of g over tokens 0, and over all others.
        first_size_sum, rest_size_sum: [H] the same of |g|.
    """
    g = gate.float().unsqueeze(-1) if gate.dim() == 3 else gate.float()
    batch, _, length, width = g.shape
    mean = g.mean(-1)
    gates = mean.to(wide(g.device)) * width
    square = torch.linalg.vector_norm(g - mean.unsqueeze(-1), dim=-1).square() + gates.square() / width
    closed = torch.where(torch.isfinite(mean), (g.abs() < CLOSED).sum(-1), torch.nan)
    first, rest = total(gates[..., 0], 0), total(gates[..., 1:], (0, 2))
    sizes = g.abs().mean(-1).to(wide(g.device)) * width
    return {
        "count": number(batch * length * width, g),
        "first_count": number(batch * width, g),
        "gate_sum": first + rest,
        "square_sum": total(square, (0, 2)),
        "closed_sum": total(closed, (0, 2)),
        "first_sum": first,
        "rest_sum": rest,
        "first_size_sum": total(sizes[..., 0], 0),
        "rest_size_sum": total(sizes[..., 1:], (0, 2)),
        "nonfinite": nonfinite(g),
    }


def attention_gate_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `attention_gate_accumulators`, each [H].

    Returns:
        gate_mean, gate_std: of all values; a deviation near 0 means a constant factor.
        gate_closed: fraction of values below 0.1 in size.
        gate_first, gate_rest: mean at token 0, and at all others (NaN if T is 1).
        gate_first_over_rest: the ratio of mean |g|, that of the two where gates are not negative; far below 1 the gate
            does at token 0 what a sink did.
    """
    count, first_count = accumulators["count"], accumulators["first_count"]
    mean, cv = spread(accumulators["square_sum"], accumulators["gate_sum"], count)
    first, rest = (
        {n: accumulators[f"{at}{n}_sum"] / tokens for n in ("", "_size")}
        for at, tokens in (("first", first_count), ("rest", count - first_count))
    )
    return narrow(
        {
            "gate_mean": mean,
            "gate_std": torch.where(mean == 0, 0.0, cv * mean.abs()),
            "gate_closed": accumulators["closed_sum"] / count,
            "gate_first": first[""],
            "gate_rest": rest[""],
            "gate_first_over_rest": quotient(first["_size"], rest["_size"]),
            "nonfinite": accumulators["nonfinite"],
        }
    )


def norm_gate_accumulators(gate: Tensor, channels: int) -> dict[str, Tensor]:
    """Accumulators of a norm's gate, [B, T, D] or [B, T, 1]: `count` tokens, `gate_sum` [D], `nonfinite`."""
    return {
        "count": number(gate.shape[0] * gate.shape[1], gate),
        "gate_sum": channel_total(gate).expand(channels).clone(),
        "nonfinite": nonfinite(gate),
    }


def norm_gate_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """gate_by_channel [D], mean gate of each channel; gate_mean, their mean; nonfinite."""
    by_channel = accumulators["gate_sum"] / accumulators["count"]
    return narrow(
        {"gate_by_channel": by_channel, "gate_mean": by_channel.mean(), "nonfinite": accumulators["nonfinite"]}
    )


def gate_magnitude_accumulators(gate: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Accumulators of a norm's gate g [B, T, D] or [B, T, 1] against the magnitude |y| of what it gates, all tokens.

    Args:
        gate: g.
        y: the norm's output before the gate [B, T, D].

    Returns:
        tokens, count: number of tokens, of values (tokens * D).
        magnitude_sum, magnitude_square_sum, gate_sum, gate_square_sum, product_sum: of |y|, |y|^2, g, g^2, g |y|.
        token_correlation_sum: sum over tokens of the correlation of |y_j| and g_j over the channels.
        magnitude_histogram, gate_histogram: [HISTOGRAM_BINS] over the fixed bins of |y|: number of values, sum of g.
        nonfinite: number of NaN and infinite values of y and g.
    """
    magnitude = y.float().abs()
    batch, length, channels = magnitude.shape
    g = gate.float().expand(magnitude.shape)
    bins = magnitude_bins(magnitude).flatten()
    dtype = wide(g.device)
    gates = torch.zeros(HISTOGRAM_BINS, dtype=dtype, device=g.device).scatter_add(0, bins, g.to(dtype).flatten())
    # Centered on each token's own means: sums of raw squares would cancel for a gate that hardly varies.
    mean_magnitude, mean_gate = magnitude.mean(-1), g.mean(-1)
    magnitude_centered, gate_centered = magnitude - mean_magnitude.unsqueeze(-1), g - mean_gate.unsqueeze(-1)
    magnitude_within = torch.linalg.vector_norm(magnitude_centered, dim=-1)
    gate_within = torch.linalg.vector_norm(gate_centered, dim=-1)
    product_within = (magnitude_centered * gate_centered).sum(-1)
    mean_magnitude, mean_gate = mean_magnitude.to(dtype), mean_gate.to(dtype)
    constant = (gate_within <= _rounding(mean_gate, channels)) | (
        magnitude_within <= _rounding(mean_magnitude, channels)
    )
    correlation = torch.where(constant, torch.nan, product_within / (magnitude_within * gate_within))
    return {
        "tokens": number(batch * length, g),
        "count": number(batch * length * channels, g),
        "magnitude_sum": channels * total(mean_magnitude),
        "magnitude_square_sum": total(magnitude_within.to(dtype).square() + channels * mean_magnitude.square()),
        "gate_sum": channels * total(mean_gate),
        "gate_square_sum": total(gate_within.to(dtype).square() + channels * mean_gate.square()),
        "product_sum": total(product_within.to(dtype) + channels * mean_magnitude * mean_gate),
        "token_correlation_sum": total(correlation),
        "magnitude_histogram": occurrences(bins, HISTOGRAM_BINS),
        "gate_histogram": gates,
        "nonfinite": nonfinite(magnitude, gate),
    }


def _rounding(mean: Tensor, count: int) -> Tensor:
    """Norm of `count` deviations from a mean that are no more than its rounding in float32."""
    return 4 * torch.finfo(torch.float32).eps * mean.abs() * count**0.5


def gate_magnitude_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `gate_magnitude_accumulators`.

    Returns:
        gate_by_decile: [10] mean g of the values in each decile of |y|, smallest first. Deciles come
            from the fixed histogram of |y| (resolution 4.4 %), not per batch; a bin that contains a decile's edge is
            split proportionally.
        gate_top_over_bottom: the last decile's over the first's; below 1 if large values get smaller gates.
        gate_correlation: Pearson correlation of |y| and g over all values, in [-1, 1]; NaN if either is constant.
        gate_token_correlation: the correlation over channels within a token, averaged over tokens. NaN if either is
            constant within any token, as one gate per token always is.
        nonfinite: number of NaN and infinite values; where it is nonzero the others are NaN.
    """
    counts, gates = accumulators["magnitude_histogram"], accumulators["gate_histogram"]
    mean_gate = torch.where(counts > 0, gates / counts, 0.0)
    upper = counts.cumsum(0)
    edges = upper[-1] * torch.arange(DECILES + 1, device=counts.device, dtype=counts.dtype) / DECILES
    lower = upper - counts
    overlap = torch.minimum(upper, edges[1:, None]) - torch.maximum(lower, edges[:-1, None])
    deciles = (overlap.clamp_min(0.0) * mean_gate).sum(-1) / (upper[-1] / DECILES)

    count = accumulators["count"]
    mean_magnitude, mean_g = accumulators["magnitude_sum"] / count, accumulators["gate_sum"] / count
    covariance = accumulators["product_sum"] / count - mean_magnitude * mean_g
    deviations = []
    for name, mean in (("magnitude", mean_magnitude), ("gate", mean_g)):
        deviation = (accumulators[f"{name}_square_sum"] / count - mean.square()).clamp_min(0.0).sqrt()
        deviations.append(torch.where(deviation <= _rounding(mean, 1), torch.nan, deviation))
    found = {
        "gate_by_decile": deciles,
        "gate_top_over_bottom": deciles[-1] / deciles[0],
        "gate_correlation": covariance / (deviations[0] * deviations[1]),
        "gate_token_correlation": accumulators["token_correlation_sum"] / accumulators["tokens"],
    }
    broken = accumulators["nonfinite"] > 0
    found = {name: torch.where(broken, torch.nan, x) for name, x in found.items()}
    return narrow(found | {"nonfinite": accumulators["nonfinite"]})


def share_accumulators(marked: Tensor) -> dict[str, Tensor]:
    """Accumulators of a mask of any shape: `count` of its values, `share_sum` of those that are true."""
    return {"count": number(marked.numel(), marked), "share_sum": marked.sum(dtype=wide(marked.device))}


def share_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """share: fraction of values that are true, in [0, 1]. From (summed) `share_accumulators`."""
    return narrow({"share": accumulators["share_sum"] / accumulators["count"]})
