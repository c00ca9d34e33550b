"""Three statistics that the literature all calls kurtosis of the residual stream, distinguished by name."""

import torch
from torch import Tensor

from sinks.stats.functional.sums import channel_total, narrow, nonfinite, number, total


def centered_unit(h: Tensor) -> tuple[Tensor, Tensor]:
    """(h - mean) / standard deviation over the channels of h [..., D], and the standard deviation [...] (population).

    A deviation within the rounding of the mean counts as zero: a constant token gives NaN.
    """
    mean = h.mean(-1, keepdim=True)
    centered = h - mean
    deviation = torch.linalg.vector_norm(centered, dim=-1, keepdim=True) / h.shape[-1] ** 0.5
    rounding = 4 * torch.finfo(torch.float32).eps * mean.abs()
    deviation = torch.where(deviation <= rounding, torch.nan, deviation)
    return centered / deviation, deviation.squeeze(-1)


def token_kurtosis(h: Tensor) -> Tensor:
    """m4 / m2^2 over the channels of each token of h [..., D]; NaN for a constant token."""
    unit, _ = centered_unit(h.float())
    return torch.linalg.vector_norm(unit.square(), dim=-1).square() / h.shape[-1]


def kurtosis_accumulators(h: Tensor) -> dict[str, Tensor]:
    """Accumulators of the kurtosis family of h [B, T, D], over tokens but token 0.

    Returns:
        tokens, nonfinite: number of those tokens, and of their NaN and infinite values.
        token_sum: sum over tokens of m4 / m2^2 over channels.
        uncentered_sum: sum over tokens of max(0, mean_j h_j^4 / std_j^4 - 3).
        square_sum: [D] sum over tokens of h_j^2.
    """
    h = h[:, 1:].float()
    unit, deviation = centered_unit(h)
    fourth = torch.linalg.vector_norm((h / deviation.unsqueeze(-1)).square(), dim=-1).square() / h.shape[-1]
    return {
        "tokens": number(h.shape[0] * h.shape[1], h),
        "nonfinite": nonfinite(h),
        "token_sum": total(torch.linalg.vector_norm(unit.square(), dim=-1).square() / h.shape[-1]),
        "uncentered_sum": total((fourth - 3).clamp_min(0.0)),
        "square_sum": channel_total(h.square()),
    }


def kurtosis_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `kurtosis_accumulators`.

    Returns:
        kurtosis_token: Bondarenko et al. (arXiv:2306.12929): mean over tokens of m4 / m2^2 over channels, centered, not
            excess; in [1, D], 3 for a normal distribution. High if any channel of a token is an outlier.
        kurtosis_excess: kurtosis_token - 3.
        kurtosis_osp: Outlier-Safe Pre-Training (arXiv:2506.19697): mean over tokens of mean_j h_j^4 / std^4 - 3, the
            fourth moment uncentered, clipped at 0 in each token; std here is the population's.
        kurtosis_neuron: He et al. (arXiv:2405.19279): mean_j s_j^4 / (mean_j s_j^2)^2 with s_j the RMS of channel j
            over tokens; in [1, D], 1 if all channels are equal, D if one has all the energy. Blind to outliers that
            wander from channel to channel.
    """
    tokens = accumulators["tokens"]
    square = accumulators["square_sum"] / tokens
    token = accumulators["token_sum"] / tokens
    return narrow(
        {
            "kurtosis_token": token,
            "kurtosis_excess": token - 3,
            "kurtosis_osp": accumulators["uncentered_sum"] / tokens,
            "kurtosis_neuron": square.square().mean() / square.mean().square(),
            "nonfinite": accumulators["nonfinite"],
        }
    )
