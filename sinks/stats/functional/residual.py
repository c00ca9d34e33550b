"""The residual stream h [B, T, D]: where it is large, and the residual sink.

Token 0 is separated from the others because a massive activation of one token is not a residual sink of all tokens.
Medians are per token and lower medians (of an even number the smaller middle one), as torch.median takes them.
"""

import math

import torch
from torch import Tensor

from sinks.stats.functional.energy import TOP_CHANNELS
from sinks.stats.functional.histogram import histogram_quantile, magnitude_histogram
from sinks.stats.functional.kurtosis import token_kurtosis
from sinks.stats.functional.order import lower_median, median_and_largest
from sinks.stats.functional.sums import channel_total, narrow, nonfinite, number, occurrences, total

# Minimum score R and consistency of a residual sink (after arXiv:2601.22966).
SINK_SCORE, SINK_CONSISTENCY = 10.0, 0.5


def token_median(h: Tensor) -> Tensor:
    """Median |h_j| over the channels of each token of h [B, T, D], [B, T]."""
    return lower_median(h.float().abs())


def token_median_and_largest(h: Tensor) -> tuple[Tensor, Tensor]:
    """`token_median` and `largest_channels` of h [B, T, D], for less than both by themselves."""
    return median_and_largest(h.float().abs(), min(max(TOP_CHANNELS), h.shape[-1]))


def mean_abs(h: Tensor) -> Tensor:
    """m_j [D], mean of |h_j| over the tokens of h [B, T, D] but token 0; as in `residual_statistics`."""
    others = h[:, 1:].float().abs()
    return (channel_total(others) / (others.shape[0] * others.shape[1])).float()


def residual_accumulators(h: Tensor, median: Tensor | None = None) -> dict[str, Tensor]:
    """Accumulators of a residual stream h [B, T, D].

    Args:
        h: the stream.
        median: `token_median(h)`, if already computed.

    Returns:
        tokens, samples: number of tokens but token 0, and number of tokens 0 (that is B).
        abs_sum, argmax_count: [D] over tokens but token 0: sum of |h_j|, and how often |h_j| is the largest.
        first_abs_sum: [D] sum of |h_j| over tokens 0.
        kurtosis_sum: sum over tokens but token 0 of m4 / m2^2 over channels, centered (arXiv:2306.12929; not excess).
        median_sum: sum over the same tokens of the token's median |h_j|.
        histogram: [HISTOGRAM_BINS] of |h| over all tokens.
        first_max, others_max: largest |h| at token 0, and elsewhere (0 if T is 1).
    """
    h = h.float()
    batch, length, channels = h.shape
    magnitude = h.abs()
    others = magnitude[:, 1:]
    largest = others.max(dim=-1)
    return {
        "tokens": number(batch * (length - 1), h),
        "samples": number(batch, h),
        "abs_sum": channel_total(others),
        "first_abs_sum": channel_total(magnitude[:, :1]),
        "argmax_count": occurrences(largest.indices, channels),
        "kurtosis_sum": total(token_kurtosis(h[:, 1:])),
        "median_sum": total((token_median(h) if median is None else median)[:, 1:]),
        "histogram": magnitude_histogram(magnitude),
        "nonfinite": nonfinite(h),
        "first_max": magnitude[:, 0].max(),
        "others_max": largest.values.max() if length > 1 else torch.zeros((), device=h.device),
    }


def residual_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `residual_accumulators`.

    Returns:
        mean_abs: [D] m_j, mean of |h_j| over tokens but token 0.
        argmax_share: [D] fraction of those tokens whose largest |h_j| is j.
        sink_dimension: argmax_j m_j.
        sink_score: R = max_j m_j / median_j m_j (after arXiv:2601.22966), >= 1.
        sink_consistency: argmax_share at the sink dimension.
        kurtosis: mean over tokens of m4 / m2^2, in [1, D].
        max_abs: [2] largest |h| at token 0, and elsewhere.
        max_over_median: largest |h| anywhere over the mean of the tokens' median |h|.
        top_permille: the paper's "first 1 permille activation ratio" of this site, token 0 included, in permille;
            `top_permille_ratio` of the mean over sites is the paper's number.
        p999: 99.9th percentile of |h| over all tokens, from the histogram (resolution 4.4 %).
        nonfinite: number of NaN and infinite values; where it is nonzero the others are NaN or infinite too.
    """
    tokens = accumulators["tokens"]
    mean_abs = accumulators["abs_sum"] / tokens
    with_first = (accumulators["abs_sum"] + accumulators["first_abs_sum"]) / (tokens + accumulators["samples"])
    broken = ~torch.isfinite(accumulators["abs_sum"]).all()
    argmax_share = torch.where(broken, torch.nan, accumulators["argmax_count"] / tokens)
    sink_dimension = mean_abs.argmax()
    max_abs = torch.stack([accumulators["first_max"], accumulators["others_max"]])
    p999 = histogram_quantile(accumulators["histogram"], 0.999)
    return narrow(
        {
            "mean_abs": mean_abs,
            "argmax_share": argmax_share,
            "sink_dimension": sink_dimension,
            "sink_score": mean_abs.max() / mean_abs.median(),
            "sink_consistency": argmax_share.take(sink_dimension),
            "kurtosis": accumulators["kurtosis_sum"] / tokens,
            "max_abs": max_abs,
            "max_over_median": max_abs.max() / (accumulators["median_sum"] / tokens),
            "top_permille": top_permille_ratio(with_first),
            "p999": torch.where(accumulators["nonfinite"] > 0, torch.nan, p999),
            "nonfinite": accumulators["nonfinite"],
        }
    )


def top_permille_ratio(mean_abs: Tensor) -> Tensor:
    """1000 * sum of the largest ceil(D / 1000) of H_j over the sum of all, H [..., D] the mean |h_j|.

    The "first 1 permille activation ratio" of arXiv:2601.22966, figure 1, in permille: 1000 * ceil(D / 1000) / D if all
    channels are equal, 1000 if one permille of them has everything. The paper averages |h_j| over tokens and layers
    first and never defines the ratio; this reads it from its figures.
    """
    count = math.ceil(mean_abs.shape[-1] / 1000)
    return 1000 * mean_abs.topk(count, dim=-1).values.sum(-1) / mean_abs.sum(-1)


def persistence_statistics(mean_abs: Tensor, argmax_share: Tensor) -> dict[str, Tensor]:
    """Whether sites share one residual sink: from `residual_statistics` stacked over S sites, [S, D] each.

    Returns:
        persistence: fraction of sites whose argmax_j m_j is the most common one (the lowest of equals), in [1 / S, 1].
        sink_sites: fraction of sites with a sink at that dimension: R >= 10 and consistency >= 0.5.
    """
    dimension = mean_abs.argmax(-1)
    elected = occurrences(dimension, mean_abs.shape[-1]).argmax()
    score = mean_abs.amax(-1) / mean_abs.median(-1).values
    consistency = argmax_share.gather(-1, dimension[:, None])[:, 0]
    undefined = torch.isnan(score) | torch.isnan(consistency)
    is_sink = torch.where(undefined, torch.nan, ((score >= SINK_SCORE) & (consistency >= SINK_CONSISTENCY)).float())
    persistence = (dimension == elected).float().mean()
    return narrow(
        {
            "persistence": torch.where(torch.isnan(mean_abs).any(), torch.nan, persistence),
            "sink_sites": (is_sink * (dimension == elected)).mean(),
        }
    )


def choose_sink_dimensions(mean_abs: Tensor, count: int = 1) -> Tensor:
    """The `count` dimensions that are largest on average over sites [count], largest first.

    The paper's order (arXiv:2601.22966, section 2): by the mean of |h_j| over tokens and layers, here over tokens but
    token 0 and over the sites [S, D] given. Chosen at one sampled step and used at the next.
    """
    return mean_abs.reshape(-1, mean_abs.shape[-1]).mean(0).topk(min(count, mean_abs.shape[-1])).indices
