"""A fixed set S of sink dimensions: does it rescale the others, or does it contribute? (arXiv:2601.22966, section 3.)

S is an index tensor [K] (int64, repeats count once), fixed before the batch is seen: `choose_sink_dimensions` of an
earlier step. "rest" are all other channels.
"""

import torch
from torch import Tensor

from sinks.stats.functional.sums import narrow, nonfinite, number, quotient, spread, total, wide


def _membership(channels: int, dimensions: Tensor) -> Tensor:
    """[D] bool, whether each channel is in S."""
    inside = torch.zeros(channels, dtype=torch.bool, device=dimensions.device)
    return inside.scatter(0, dimensions, torch.ones_like(dimensions, dtype=torch.bool))


def _energies(x: Tensor, dimensions: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squares [...] of x [..., D] in S and in the rest, summed separately so that neither is rounded away."""
    x = x.float()
    repeats = (dimensions == dimensions[:, None]).sum(0)
    sink = (x[..., dimensions].square() / repeats).sum(-1)
    rest = torch.linalg.vector_norm(x.masked_fill(_membership(x.shape[-1], dimensions), 0.0), dim=-1).square()
    return sink, rest


def sink_dimension_accumulators(h: Tensor, dimensions: Tensor) -> dict[str, Tensor]:
    """Accumulators of what S does to the norm of h [B, T, D], over tokens but token 0.

    Returns:
        tokens, nonfinite: number of those tokens, and of their NaN and infinite values.
        energy_sum: sum over tokens of r^2 = sum_{j in S} h_j^2 / ||h||^2.
        rescale_sum, rescale_square_sum: of rho = rms(h_rest) / rms(h) = sqrt((1 - r^2) D / (D - |S|)), the factor by
            which S makes the norm shrink the rest; and of rho^2.
    """
    h = h[:, 1:].float()
    channels = h.shape[-1]
    inside = _membership(channels, dimensions)
    sink, rest = _energies(h, dimensions)
    energy = sink + rest
    remaining = (channels - inside.sum()).to(h.dtype)
    rescale = (quotient(rest, energy) * (channels / remaining)).sqrt()
    return {
        "tokens": number(rescale.numel(), h),
        "nonfinite": nonfinite(h),
        "energy_sum": total(quotient(sink, energy)),
        "rescale_sum": total(rescale),
        "rescale_square_sum": total(rescale.to(wide(h.device)).square()),
    }


def sink_dimension_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `sink_dimension_accumulators`; a token of zeros, or S = all channels, gives NaN.

    Returns:
        energy_share: mean r^2, in [0, 1].
        rescale: mean rho, in [0, sqrt(D / (D - |S|))]; 1 if S is an average set of channels, near 0 if it dominates.
        rescale_cv: standard deviation of rho over tokens over its mean. A rho that does not vary with context is no
            rescaling that attention or the gain could not absorb; the paper does not check it.
    """
    tokens = accumulators["tokens"]
    rescale, cv = spread(accumulators["rescale_square_sum"], accumulators["rescale_sum"], tokens)
    return narrow(
        {
            "energy_share": accumulators["energy_sum"] / tokens,
            "rescale": rescale,
            "rescale_cv": cv,
            "nonfinite": accumulators["nonfinite"],
        }
    )


def output_share_accumulators(output: Tensor, dimensions: Tensor) -> dict[str, Tensor]:
    """Accumulators of what S contributes to a norm's output y [B, T, D], over tokens but token 0.

    Returns:
        tokens, nonfinite: number of those tokens, and of their NaN and infinite values.
        output_share_sum: sum over tokens of sum_{j in S} y_j^2 / ||y||^2.
    """
    y = output[:, 1:].float()
    sink, rest = _energies(y, dimensions)
    return {
        "tokens": number(sink.numel(), y),
        "nonfinite": nonfinite(y),
        "output_share_sum": total(quotient(sink, sink + rest)),
    }


def output_share_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """output_share: mean fraction of output energy in S, in [0, 1]; nonfinite. From `output_share_accumulators`."""
    share = accumulators["output_share_sum"] / accumulators["tokens"]
    return narrow({"output_share": share, "nonfinite": accumulators["nonfinite"]})


def rescale_contribute_index(energy_share: Tensor, output_share: Tensor) -> Tensor:
    """Mean r^2 over mean output share: how much larger S is in the denominator than in the output.

    1: the sink contributes as much as it rescales. Far above 1: it rescales (the paper's claim). Below 1: it
    contributes. 0 / 0 is NaN. The ratio of means, not the mean of ratios.
    """
    return quotient(energy_share, output_share)


def gain_at_sink(gain: Tensor, sink_dimension: Tensor) -> Tensor:
    """|gain| at the sink dimension over the median |gain|, of one norm's gain [D] (arXiv:2601.22966, section 3).

    `sink_dimension` is one index, or a set [K] that gives [K]. 1: no suppression; the paper finds 0.004. Distinguish
    the kinds of sites: suppression may be at feed-forward norms only.
    """
    magnitude = gain.float().abs()
    return magnitude.take(sink_dimension) / magnitude.median()


def bound_accumulators(h: Tensor, output: Tensor, gain: Tensor, dimensions: Tensor) -> dict[str, Tensor]:
    """Accumulators of the check of the theorem of arXiv:2601.22966, appendix A.1, over all tokens, token 0 too.

    ||y||_rms <= ||gain||_inf * sqrt((1 - r^2) + eps^2 r^2), y = RMSNorm(h), eps = max_S |gain| / ||gain||_inf and
    r^2 the fraction of energy in S; the paper has one dimension in S, the proof is the same for more.

    Args:
        h: what the norm divides by its RMS [B, T, D]: its input, or pre * input for PreAffine.
        output: the actual output, before any gate [B, T, D].
        gain: [D], the gain after the division.
        dimensions: S [K].

    Returns:
        tokens: number of tokens.
        bound_sum, bound_max: sum and maximum over tokens of the left side over the right.
        nonfinite: number of tokens where that ratio is NaN or infinite; a token of zeros is one.
    """
    sink, rest = _energies(h, dimensions)
    energy = sink + rest
    magnitude = gain.float().abs()
    largest = magnitude.max()
    epsilon = magnitude[dimensions].max() / largest
    right = largest * (quotient(rest, energy) + epsilon.square() * quotient(sink, energy)).sqrt()
    left = torch.linalg.vector_norm(output.float(), dim=-1) / output.shape[-1] ** 0.5
    ratio = quotient(left, right)
    return {
        "tokens": number(ratio.numel(), h),
        "bound_sum": total(ratio),
        "bound_max": ratio.max(),
        "nonfinite": nonfinite(ratio),
    }


def bound_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `bound_accumulators`.

    Returns:
        bound_max: the largest left side over right side; at most 1, up to the output's rounding, if the theorem holds.
        bound_mean: their mean; near 1 the bound is tight, so the sink limits the output.
        nonfinite: number of tokens where it is undefined.
    """
    mean = accumulators["bound_sum"] / accumulators["tokens"]
    return narrow({"bound_max": accumulators["bound_max"], "bound_mean": mean, "nonfinite": accumulators["nonfinite"]})
