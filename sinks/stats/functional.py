"""Moments of one batch from which every statistic follows: pure functions, float32, to be added over batches and ranks.

Names ending in `_max` are combined by maximum, all others by sum. B batch, T tokens, D channels, H heads.
Token 0 is told apart from the others because a massive activation of one token is not a residual sink of all tokens.
"""

import torch
from torch import Tensor

# |h| is counted in a fixed log-spaced histogram: 16 bins per octave (4.4 % per bin) between 2^-20 and 2^20.
HISTOGRAM_BINS_PER_OCTAVE = 16
HISTOGRAM_OCTAVES = (-20, 20)
HISTOGRAM_BINS = HISTOGRAM_BINS_PER_OCTAVE * (HISTOGRAM_OCTAVES[1] - HISTOGRAM_OCTAVES[0])
SINK_THRESHOLDS = (0.3, 0.8)


def magnitude_histogram(x: Tensor) -> Tensor:
    """Counts of |x| [HISTOGRAM_BINS] in the fixed log-spaced histogram; the outer bins take what lies beyond."""
    octave = torch.log2(x.abs().clamp(2.0 ** HISTOGRAM_OCTAVES[0], 2.0 ** HISTOGRAM_OCTAVES[1]))
    bins = ((octave - HISTOGRAM_OCTAVES[0]) * HISTOGRAM_BINS_PER_OCTAVE).long().clamp(0, HISTOGRAM_BINS - 1)
    return torch.bincount(bins.flatten(), minlength=HISTOGRAM_BINS).float()


def histogram_quantile(counts: Tensor, quantile: float) -> Tensor:
    """Upper edge of the bin that holds a quantile of |x| (resolution 4.4 %); NaN for an empty histogram."""
    cumulative = counts.double().cumsum(0)
    index = torch.searchsorted(cumulative, quantile * cumulative[-1]).clamp(max=HISTOGRAM_BINS - 1)
    edge = 2.0 ** (HISTOGRAM_OCTAVES[0] + (index + 1).double() / HISTOGRAM_BINS_PER_OCTAVE)
    return torch.where(cumulative[-1] > 0, edge, torch.nan).float()


def residual_moments(h: Tensor) -> dict[str, Tensor]:
    """Moments of a residual stream h [B, T, D].

    Returns:
        tokens: number of tokens but token 0.
        abs_sum, argmax_count: [D] over tokens but token 0: sum of |h_j|, and how often |h_j| is the largest.
        kurtosis_sum: sum over the same tokens of m4 / m2^2 over channels, centred (arXiv:2306.12929; not excess).
        median_sum: sum over the same tokens of the token's median |h_j|.
        histogram: [HISTOGRAM_BINS] of |h| over all tokens.
        nonfinite: number of NaN and infinite values.
        first_max, others_max: largest |h| at token 0, and elsewhere (0 if there is nothing elsewhere).
    """
    h = h.float()
    magnitude = h.abs()
    others = magnitude[:, 1:].flatten(0, 1)
    centred = h[:, 1:].flatten(0, 1)
    centred = centred - centred.mean(dim=-1, keepdim=True)
    square = centred.square()
    variance = square.mean(dim=-1)
    channels = h.shape[-1]
    largest = others.max(dim=-1) if len(others) else None
    return {
        "tokens": torch.tensor(float(len(others)), device=h.device),
        "abs_sum": others.sum(0),
        "argmax_count": (
            torch.zeros(channels, device=h.device)
            if largest is None
            else torch.bincount(largest.indices, minlength=channels).float()
        ),
        "kurtosis_sum": (square.square().mean(dim=-1) / variance.square()).sum(),
        "median_sum": others.median(dim=-1).values.sum(),
        "histogram": magnitude_histogram(magnitude.nan_to_num(0.0)),
        "nonfinite": (~torch.isfinite(h)).sum().float(),
        "first_max": magnitude[:, 0].max(),
        "others_max": torch.zeros((), device=h.device) if largest is None else largest.values.max(),
    }


def attention_moments(first_token_mass: Tensor, learned_sink_mass: Tensor) -> dict[str, Tensor]:
    """Moments of one attention sublayer from per-row masses [B, H, T].

    Returns:
        samples, rows: number of rows of tokens B, and of queries that see more than the first token, B * (T - 1).
        first_sum: [H] sum of A_{i,0} over queries i >= 1; row 0 is left out because its mass is trivially one.
        learned_sum: [H] sum over all queries of the mass on learned sinks, and `queries` their number.
        sink_count_{eps}: [H] number of samples with alpha_0 > eps, alpha_0 the mean of A_{i,0} over all queries,
            row 0 included (Sink^eps_1 of arXiv:2410.10781).
    """
    batch, _, length = first_token_mass.shape
    alpha = first_token_mass.mean(dim=-1)
    device = first_token_mass.device
    return {
        "samples": torch.tensor(float(batch), device=device),
        "rows": torch.tensor(float(batch * (length - 1)), device=device),
        "queries": torch.tensor(float(batch * length), device=device),
        "first_sum": first_token_mass[..., 1:].sum(dim=(0, 2)),
        "learned_sum": learned_sink_mass.sum(dim=(0, 2)),
    } | {f"sink_count_{eps}": (alpha > eps).sum(0).float() for eps in SINK_THRESHOLDS}


def value_moments(v: Tensor) -> dict[str, Tensor]:
    """Moments of value vectors v [B, n_kv_heads, T, head_dim].

    Returns:
        samples: B, or 0 if T is 1.
        ratio_sum: [n_kv_heads] sum over samples of ||v_0|| / median_{j >= 1} ||v_j|| (arXiv:2410.10781).
    """
    norms = v.float().norm(dim=-1)
    if norms.shape[-1] < 2:
        return {"samples": torch.zeros((), device=v.device), "ratio_sum": torch.zeros(v.shape[1], device=v.device)}
    ratio = norms[..., 0] / norms[..., 1:].median(dim=-1).values
    return {"samples": torch.tensor(float(len(v)), device=v.device), "ratio_sum": ratio.sum(0)}


def attention_gate_moments(gate: Tensor) -> dict[str, Tensor]:
    """Moments of gate values, [B, H, T] or [B, H, T, head_dim] in [0, 1]: `count` per head, `gate_sum` [H]."""
    per_head = gate.float().transpose(0, 1).flatten(1)
    return {"count": torch.tensor(float(per_head.shape[1]), device=gate.device), "gate_sum": per_head.sum(1)}


def norm_gate_moments(gate: Tensor, channels: int) -> dict[str, Tensor]:
    """Moments of a norm's gate, [B, T, D] or [B, T, 1]: `count` tokens, `gate_sum` [D]."""
    flat = gate.float().flatten(0, 1)
    return {
        "count": torch.tensor(float(len(flat)), device=gate.device),
        "gate_sum": flat.sum(0).expand(channels).clone(),
    }


def residual_statistics(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What follows from (summed) `residual_moments`.

    Returns:
        mean_abs: [D] m_j, mean of |h_j| over tokens but token 0.
        argmax_share: [D] share of those tokens whose largest |h_j| is j.
        sink_dimension: argmax_j m_j.
        sink_score: R = max_j m_j / median_j m_j.
        sink_consistency: argmax_share at the sink dimension.
        kurtosis: mean over tokens of m4 / m2^2.
        max_abs: [2] largest |h| at token 0, and elsewhere.
        max_over_median: largest |h| anywhere over the mean of the tokens' median |h|.
        p999: 99.9th percentile of |h| over all tokens, from the histogram (resolution 4.4 %).
        nonfinite: number of NaN and infinite values; where it is not zero the others are NaN or infinite too.
    """
    tokens = moments["tokens"]
    mean_abs = moments["abs_sum"] / tokens
    argmax_share = moments["argmax_count"] / tokens
    sink_dimension = mean_abs.argmax()
    max_abs = torch.stack([moments["first_max"], moments["others_max"]])
    return {
        "mean_abs": mean_abs,
        "argmax_share": argmax_share,
        "sink_dimension": sink_dimension,
        "sink_score": mean_abs.max() / mean_abs.median(),
        "sink_consistency": argmax_share[sink_dimension],
        "kurtosis": moments["kurtosis_sum"] / tokens,
        "max_abs": max_abs,
        "max_over_median": max_abs.max() / (moments["median_sum"] / tokens),
        "p999": histogram_quantile(moments["histogram"], 0.999),
        "nonfinite": moments["nonfinite"],
    }


def attention_statistics(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What follows from (summed) `attention_moments`, each [H].

    Returns:
        first_token_mass: mean of A_{i,0} over queries i >= 1.
        learned_sink_mass: mean mass on learned sinks.
        sink_ratio_{eps}: share of samples with alpha_0 > eps; its mean over layers and heads is Sink^eps_1.
    """
    return {
        "first_token_mass": moments["first_sum"] / moments["rows"],
        "learned_sink_mass": moments["learned_sum"] / moments["queries"],
    } | {f"sink_ratio_{eps}": moments[f"sink_count_{eps}"] / moments["samples"] for eps in SINK_THRESHOLDS}


def gain_at_sink(gain: Tensor, sink_dimension: Tensor) -> Tensor:
    """|gain| at the sink dimension over the median |gain|, of one norm's gain [D] (arXiv:2601.22966, section 3)."""
    magnitude = gain.float().abs()
    return magnitude[sink_dimension] / magnitude.median()


def share_moments(share: Tensor) -> dict[str, Tensor]:
    """Moments of a share reported once per forward pass: `count`, `share_sum`."""
    return {"count": torch.ones((), device=share.device), "share_sum": share.float()}
