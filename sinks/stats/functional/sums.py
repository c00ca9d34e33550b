"""Sums of batch terms: float32 within a token or a sample, float64 over tokens, samples, batches and ranks.

A sample's terms do not depend on its batch or rank, so the sums of parts add up to the total to float64 rounding.
No value on a device is read on the host, and no shape depends on data: everything traces under torch.compile.
"""

import math

import torch
from torch import Tensor


def wide(device: torch.device) -> torch.dtype:
    """The dtype of sums: float64 where the device has it (Apple's MPS does not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def number(value: float, like: Tensor) -> Tensor:
    """A count known from shapes, as a scalar on `like`'s device."""
    return torch.full((), value, dtype=wide(like.device), device=like.device)


def total(terms: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Sum of terms, at most one per token, in the wide dtype."""
    return terms.to(wide(terms.device)).sum(dim)


def channel_total(x: Tensor) -> Tensor:
    """[B, T, D] -> [D]: over the tokens of a sample in float32, over samples in the wide dtype."""
    return x.float().sum(1).to(wide(x.device)).sum(0)


def exceeds(x: Tensor, threshold: float | Tensor) -> Tensor:
    """1 where x > threshold, 0 where not, NaN where x is NaN or infinite: a comparison would hide them."""
    return torch.where(torch.isfinite(x), (x > threshold).float(), torch.nan)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, NaN where the denominator is infinite: a zero would hide it."""
    return torch.where(torch.isinf(denominator), torch.nan, numerator / denominator)


def occurrences(indices: Tensor, size: int) -> Tensor:
    """How often each of 0 ... size - 1 occurs; unlike bincount its shape does not depend on data."""
    flat = indices.flatten()
    counts = torch.zeros(size, dtype=torch.int64, device=flat.device)
    return counts.index_add(0, flat, counts.new_ones(1).expand(flat.shape)).to(wide(flat.device))


def nonfinite(*tensors: Tensor) -> Tensor:
    """Number of NaN and infinite values: only these differ from zero after x - x."""
    counted = torch.stack([torch.count_nonzero(x - x) for x in tensors if not _known_finite(x)] or [_none(tensors[0])])
    return counted.sum().to(wide(counted.device))


def _known_finite(x: Tensor) -> bool:
    """Whether the sum of x, half of the work of counting, already shows that there is nothing to count."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and math.isfinite(x.sum())


def _none(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=x.device)


def spread(square_sum: Tensor, value_sum: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and coefficient of variation (population standard deviation over |mean|; resolution about 1e-7)."""
    mean = value_sum / count
    variance = (square_sum / count - mean.square()).clamp_min(0.0)
    return mean, variance.sqrt() / mean.abs()


def narrow(statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Finished statistics in float32; indices stay integers."""
    return {name: x.float() if x.is_floating_point() else x for name, x in statistics.items()}
