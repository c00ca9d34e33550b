"""Massive activations: single values of single tokens, far above everything else (Sun et al., arXiv:2402.17762)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.stats.functional.order import lower_median
from sinks.stats.functional.residual import token_median
from sinks.stats.functional.sums import exceeds, narrow, nonfinite, number, total

MASSIVE_ABSOLUTE, MASSIVE_RELATIVE = 100.0, 1000.0
RELATIVE_CRITERIA = (100, 300, 1000)
TOP = 3


def _largest(magnitude: Tensor, peak: Tensor) -> Tensor:
    """The TOP largest [B, TOP] of each sample of |h| [B, T, D], NaN where there are fewer.

    They are in the tokens with the TOP largest peaks [B, T].
    """
    length, channels = magnitude.shape[1:]
    tokens = peak.topk(min(TOP, length), dim=-1).indices
    found = magnitude.gather(1, tokens.unsqueeze(-1).expand(-1, -1, channels)).flatten(1)
    count = min(TOP, found.shape[-1])
    return F.pad(found.topk(count, dim=-1).values, (0, TOP - count), value=torch.nan)


def sample_median(h: Tensor) -> Tensor:
    """Median |h| over the tokens and channels of each sample of h [B, T, D], [B]."""
    return lower_median(h.float().abs().flatten(1))


def massive_tokens(peak: Tensor, sample_median: Tensor) -> Tensor:
    """Which tokens [B, T] have a massive activation, by the sample's median as in the authors' code.

    A token with a non-finite value has none.

    Args:
        peak: each token's largest |h| [B, T].
        sample_median: of h [B].
    """
    return torch.isfinite(peak) & (peak > _threshold(sample_median)[:, None])


def _threshold(median: Tensor) -> Tensor:
    """Both of Sun's thresholds."""
    return (MASSIVE_RELATIVE * median).clamp_min(MASSIVE_ABSOLUTE)


def _count(magnitude: Tensor, peak: Tensor, median: Tensor) -> Tensor:
    """Values of each row [..., N] that are massive; NaN where the row's largest is NaN or infinite."""
    above = (magnitude > _threshold(median).unsqueeze(-1)).sum(-1)
    return torch.where(torch.isfinite(peak), above, torch.nan)


def massive_accumulators(
    h: Tensor, median: Tensor | None = None, median_of_samples: Tensor | None = None
) -> dict[str, Tensor]:
    """Accumulators of massive activations of h [B, T, D]. All tokens count, token 0 too, except in `ratio_*`.

    Medians are of |h|: "token" that of the token's D channels, "tensor" that of the sample's T * D values (as the
    authors' code takes it, one sequence at a time). The choice changes the count; both are kept.

    Args:
        h: the residual stream.
        median: `token_median(h)`, if already computed.
        median_of_samples: `sample_median(h)`, if already computed.

    Returns:
        tokens, samples, later_tokens, nonfinite: numbers of tokens B * T, samples B, tokens but token 0, non-finites.
        token_count, tensor_count: values with |h| > 100 and |h| > 1000 * median.
        relative_{c}_token_count, relative_{c}_tensor_count: tokens, and samples, whose largest |h| > c * median, for c
            in RELATIVE_CRITERIA: for models too small for an absolute threshold.
        top_sum: [3] sum over samples of the 1st to 3rd largest |h| over the sample's median; NaN if T * D < 3.
        ratio_sum, ratio_max: over tokens but token 0, sum and maximum of max_j |h_j| / median_j |h_j|.
    """
    magnitude = h.float().abs()
    batch, length = magnitude.shape[:2]
    peak = magnitude.amax(-1)
    median = token_median(h) if median is None else median
    sample_top = _largest(magnitude, peak)
    center = sample_median(h) if median_of_samples is None else median_of_samples
    ratio = peak[:, 1:] / median[:, 1:]
    accumulators = {
        "tokens": number(batch * length, h),
        "samples": number(batch, h),
        "later_tokens": number(batch * (length - 1), h),
        "nonfinite": nonfinite(magnitude),
        "token_count": total(_count(magnitude, peak, median)),
        "tensor_count": total(_count(magnitude.flatten(1), sample_top[:, 0], center)),
        "top_sum": total(sample_top / center[:, None], 0),
        "ratio_sum": total(ratio),
        "ratio_max": ratio.max() if length > 1 else torch.full((), -torch.inf, device=h.device),
    }
    for c in RELATIVE_CRITERIA:
        accumulators[f"relative_{c}_token_count"] = total(exceeds(peak, c * median))
        accumulators[f"relative_{c}_tensor_count"] = total(exceeds(sample_top[:, 0], c * center))
    return accumulators


def massive_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `massive_accumulators`.

    Returns:
        massive_per_token_median, massive_per_tensor_median: mean number of massive activations per sample, >= 0.
        relative_{c}_per_token_median: fraction of tokens whose largest |h| is above c times the token's median.
        relative_{c}_per_tensor_median: fraction of samples whose largest |h| is above c times the sample's median.
        top_over_median: [3] 1st to 3rd largest |h| over the median, per sample, then averaged.
        max_median_ratio: He et al. (arXiv:2405.19279): mean over tokens but token 0 of max_j |h_j| / median_j |h_j|.
        max_median_ratio_max: the largest of them; NaN if there is none.
    """
    samples = accumulators["samples"]
    largest = accumulators["ratio_max"]
    found = {
        "massive_per_token_median": accumulators["token_count"] / samples,
        "massive_per_tensor_median": accumulators["tensor_count"] / samples,
        "top_over_median": accumulators["top_sum"] / samples,
        "max_median_ratio": accumulators["ratio_sum"] / accumulators["later_tokens"],
        "max_median_ratio_max": torch.where(largest == -torch.inf, torch.nan, largest),
        "nonfinite": accumulators["nonfinite"],
    }
    for c in RELATIVE_CRITERIA:
        found[f"relative_{c}_per_token_median"] = accumulators[f"relative_{c}_token_count"] / accumulators["tokens"]
        found[f"relative_{c}_per_tensor_median"] = accumulators[f"relative_{c}_tensor_count"] / samples
    return narrow(found)
