"""Where attention goes: masses on the first token, on every key, on learned sinks; entropy and logits.

A_ij is the weight of query i on key j. The rows of unnormalized attention (sigmoid, clipped softmax) are renormalized
first, a proxy (arXiv:2410.10781, section 5): report it as one. Everything is per head; means over layers and heads are
the caller's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.stats.functional.sums import exceeds, narrow, nonfinite, number, spread, total, wide

SINK_THRESHOLDS = (0.3, 0.8)
# The head of arXiv:2603.05498 counts above this.
NYU_THRESHOLD = 0.3


def attention_accumulators(
    first_token_mass: Tensor, learned_sink_mass: Tensor, thresholds: tuple[float, ...] = SINK_THRESHOLDS
) -> dict[str, Tensor]:
    """Accumulators of one attention sublayer from per-row masses [B, H, T].

    Returns:
        samples, rows: number of sequences B, and of queries that attend to more than the first token, B * (T - 1).
        first_sum: [H] sum of A_{i,0} over queries i >= 1; row 0 is excluded because its mass is trivially one.
        first_row_sum: [H] sum of A_{0,0}: one per sample, unless a learned sink takes some of it.
        learned_sum: [H] sum over all queries of the mass on learned sinks, and `queries` their number.
        rescale_sum, rescale_square_sum: [H] sums over queries i >= 1 of 1 - w and of its square, w = A_{i,0} + learned.
        sink_count_{eps}: [H] number of samples with alpha_0 > eps, alpha_0 the mean of A_{i,0} over all queries,
            row 0 included (Sink^eps_1 of arXiv:2410.10781).
    """
    batch, _, length = first_token_mass.shape
    first, learned = first_token_mass.float(), learned_sink_mass.float()
    alpha = first.mean(dim=-1)
    rescale = (1 - first[..., 1:] - learned[..., 1:]).to(wide(first.device))
    return {
        "samples": number(batch, first),
        "rows": number(batch * (length - 1), first),
        "queries": number(batch * length, first),
        "first_sum": total(first[..., 1:], (0, 2)),
        "first_row_sum": total(first[..., 0], 0),
        "learned_sum": total(learned, (0, 2)),
        "rescale_sum": total(rescale, (0, 2)),
        "rescale_square_sum": total(rescale.square(), (0, 2)),
        "nonfinite": nonfinite(first, learned),
    } | {f"sink_count_{eps}": total(exceeds(alpha, eps), 0) for eps in thresholds}


def attention_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `attention_accumulators`, each [H].

    Returns:
        first_token_mass: mean of A_{i,0} over queries i >= 1.
        first_token_mass_with_first_row: the same over all queries, the trivial row included; (T - 1) / T of the former
            plus 1 / T, so short sequences appear to have sinks.
        learned_sink_mass: mean mass on learned sinks.
        effective_rescale: mean of 1 - w_s over queries i >= 1, w_s the mass on token 0 and learned sinks together: what
            is left for the other tokens. With a value of zero at the sink the output is scaled by it.
        effective_rescale_cv: its standard deviation over queries over its mean; 0 is a constant factor, no rescaling.
        sink_ratio_{eps}: fraction of samples with alpha_0 > eps; its mean over layers and heads is Sink^eps_1.
    """
    rescale, cv = spread(accumulators["rescale_square_sum"], accumulators["rescale_sum"], accumulators["rows"])
    return narrow(
        {
            "first_token_mass": accumulators["first_sum"] / accumulators["rows"],
            "first_token_mass_with_first_row": (accumulators["first_sum"] + accumulators["first_row_sum"])
            / accumulators["queries"],
            "learned_sink_mass": accumulators["learned_sum"] / accumulators["queries"],
            "effective_rescale": rescale,
            "effective_rescale_cv": cv,
            "nonfinite": accumulators["nonfinite"],
        }
        | _sink_ratios("sink_ratio_", accumulators, accumulators["samples"])
    )


def uniform_first_token_mass(tokens: int) -> float:
    """First-token mass of uniform causal attention: the mean over queries i >= 1 of 1 / (i + 1), about ln T / T.

    Args:
        tokens: length T of a row; NaN for T = 1.
    """
    return sum(1 / (i + 1) for i in range(1, tokens)) / (tokens - 1) if tokens > 1 else math.nan


def _sink_ratios(prefix: str, accumulators: dict[str, Tensor], count: Tensor) -> dict[str, Tensor]:
    sums = {name: x for name, x in accumulators.items() if name.startswith("sink_count_")}
    return {prefix + name.removeprefix("sink_count_"): x / count for name, x in sums.items()}


def key_mass_accumulators(
    key_mass: Tensor, positions: int = 4, thresholds: tuple[float, ...] = SINK_THRESHOLDS
) -> dict[str, Tensor]:
    """Accumulators of the mass each key receives, sum_i A_ij [B, H, T] of `sink_kernels.key_mass`; keys from 0 on.

    Returns:
        samples: number of samples B.
        alpha_sum, alpha_count: [H, positions] sum over samples of Gu's alpha_k = 1 / (T - k) sum_{i >= k} A_ik of the
            first `positions` keys, and how many samples have a key k.
        sink_count_{eps}: [H, positions] samples with alpha_k > eps (arXiv:2410.10781).
        nyu_samples: samples of at least two tokens.
        nyu_largest_sum, nyu_count: [H] over these, sum of max_{k < T / 2} of 1 / T sum_i A_ik, and how often it is
            above 0.3 (arXiv:2603.05498; the first half of the keys, T / 2 rounded down).
    """
    mass = key_mass.float()
    batch, heads, length = mass.shape
    seen = torch.arange(length, 0, -1, device=mass.device, dtype=mass.dtype)
    kept = min(positions, length)
    missing = (0, positions - kept)
    alpha = (mass / seen)[..., :kept]
    present = torch.full((heads, kept), batch, dtype=wide(mass.device), device=mass.device)
    if length > 1:
        first_half = mass[..., : length // 2]
        largest = torch.where(torch.isfinite(first_half).all(-1), first_half.amax(-1) / length, torch.nan)
    else:
        largest = mass.new_zeros(0, heads)
    return {
        "samples": number(batch, mass),
        "alpha_sum": F.pad(total(alpha, 0), missing),
        "alpha_count": F.pad(present, missing),
        "nyu_samples": number(len(largest), mass),
        "nyu_largest_sum": total(largest, 0),
        "nyu_count": total(exceeds(largest, NYU_THRESHOLD), 0),
        "nonfinite": nonfinite(mass),
    } | {f"sink_count_{eps}": F.pad(total(exceeds(alpha, eps), 0), missing) for eps in thresholds}


def key_mass_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `key_mass_accumulators`; the two sink ratios differ in positions and in divisor.

    Returns:
        alpha: [H, positions] mean over samples of alpha_k; NaN where no sample has a key k.
        sink_gu_{eps}: [H, positions] fraction of samples with alpha_k > eps; the mean over layers and heads is Gu's
            Sink^eps_{k+1}.
        sink_nyu: [H] fraction of samples whose largest 1/T-mean over the first half of the keys is above 0.3; the mean
            over layers and heads is the sink ratio of arXiv:2603.05498. NaN if all samples have one token.
        nyu_largest: [H] mean of that largest mass.
    """
    return narrow(
        {
            "alpha": accumulators["alpha_sum"] / accumulators["alpha_count"],
            "sink_nyu": accumulators["nyu_count"] / accumulators["nyu_samples"],
            "nyu_largest": accumulators["nyu_largest_sum"] / accumulators["nyu_samples"],
            "nonfinite": accumulators["nonfinite"],
        }
        | _sink_ratios("sink_gu_", accumulators, accumulators["alpha_count"])
    )


def attention_row_accumulators(entropy: Tensor, max_logit: Tensor, sinks: int = 0) -> dict[str, Tensor]:
    """Accumulators of each query's entropy and largest logit, [B, H, T] each, as `sink_kernels.attention` gives them.

    Args:
        entropy: of the row's weights in nats, a learned sink's included.
        max_logit: largest q . k * scale.
        sinks: number of learned sinks that count as keys in the entropy.

    Returns:
        queries, spread_queries: number of queries, and of those that attend to more than one key (sinks included).
        entropy_sum, entropy_share_sum: [H] sums of the entropy over all queries, and of entropy over log(visible keys)
            over the second kind.
        logit_sum, logit_max: [H] sum and maximum over queries of the largest logit.
    """
    entropy, max_logit = entropy.float(), max_logit.float()
    batch, _, length = entropy.shape
    visible = torch.arange(1, length + 1, device=entropy.device, dtype=entropy.dtype) + sinks
    alone = 1 if sinks == 0 else 0
    share = entropy[..., alone:] / visible[alone:].log()
    return {
        "queries": number(batch * length, entropy),
        "spread_queries": number(batch * (length - alone), entropy),
        "entropy_sum": total(entropy, (0, 2)),
        "entropy_share_sum": total(share, (0, 2)),
        "logit_sum": total(max_logit, (0, 2)),
        "logit_max": torch.where(torch.isinf(max_logit), torch.nan, max_logit).amax((0, 2)),
        "nonfinite": nonfinite(entropy, max_logit),
    }


def attention_row_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `attention_row_accumulators`, each [H].

    Returns:
        entropy: mean entropy in nats, in [0, log T].
        entropy_share: mean of entropy over log(visible keys), in [0, 1]; queries with one key are excluded.
        logit_mean, logit_max: mean and maximum over queries of the largest logit.
    """
    queries = accumulators["queries"]
    return narrow(
        {
            "entropy": accumulators["entropy_sum"] / queries,
            "entropy_share": accumulators["entropy_share_sum"] / accumulators["spread_queries"],
            "logit_mean": accumulators["logit_sum"] / queries,
            "logit_max": accumulators["logit_max"],
            "nonfinite": accumulators["nonfinite"],
        }
    )
