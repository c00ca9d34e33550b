"""What a sublayer writes: its update over the residual that it is added to, and whether it writes along or against."""

import torch
from torch import Tensor

from sinks.stats.functional.sums import narrow, nonfinite, quotient, total


def update_accumulators(residual: Tensor, update: Tensor) -> dict[str, Tensor]:
    """Accumulators of the update that is added to the residual stream, [B, T, D] each; token 0 apart.

    Returns:
        ratio_count, first_ratio_count: numbers of tokens but token 0, and of tokens 0, whose residual is not zero.
        ratio_sum, first_ratio_sum: sums over these of ||update|| / ||residual||.
        cosine_count, first_cosine_count: numbers of those whose update is not zero either.
        cosine_sum, first_cosine_sum: sums over these of update . residual / (||update|| ||residual||).
        nonfinite: NaN and infinite values of both.
    """
    residual, update = residual.float(), update.float()
    base, size = torch.linalg.vector_norm(residual, dim=-1), torch.linalg.vector_norm(update, dim=-1)
    product, along = base * size, (residual * update).sum(-1)
    terms = {"ratio": _defined(size, base), "cosine": _defined(along, product)}
    accumulators = {"nonfinite": nonfinite(residual, update)}
    for name, (values, defined) in terms.items():
        for prefix, tokens in (("", slice(1, None)), ("first_", slice(0, 1))):
            accumulators[f"{prefix}{name}_count"] = total(defined[:, tokens])
            accumulators[f"{prefix}{name}_sum"] = total(values[:, tokens])
    return accumulators


def _defined(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """Quotients [B, T], 0 where undefined, and where they are defined."""
    zero = denominator == 0
    return quotient(numerator, torch.where(zero, 1.0, denominator)).masked_fill(zero, 0.0), ~zero


def update_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `update_accumulators`; NaN where no token has a value.

    Returns:
        ratio, ratio_first_token: mean over tokens but token 0, and over tokens 0, of ||update|| / ||residual||, >= 0.
        cosine, cosine_first_token: mean cosine of update and residual, in [-1, 1]; negative: it writes against.
    """
    found = {"nonfinite": accumulators["nonfinite"]}
    for name in ("ratio", "cosine"):
        for prefix, suffix in (("", ""), ("first_", "_first_token")):
            found[name + suffix] = accumulators[f"{prefix}{name}_sum"] / accumulators[f"{prefix}{name}_count"]
    return narrow(found)
