"""What a router of experts does: how evenly it loads them, and how decided it is."""

import math

import torch
from torch import Tensor

from sinks.stats.functional.sums import narrow, nonfinite, number, occurrences, total


def router_accumulators(logits: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """Accumulators of router logits [B, T, E] and the chosen experts [B, T, K]; token 0 is not apart.

    Returns:
        rows [E]: how often each expert was chosen.
        tokens: number of tokens.
        entropy_sum: sum over tokens of the entropy of the softmax over all experts, in nats.
        nonfinite: NaN and infinite logits.
    """
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return {
        "rows": occurrences(chosen, logits.shape[-1]),
        "tokens": number(logits[..., 0].numel(), logits),
        "entropy_sum": total(-(log_p.exp() * log_p).sum(-1)),
        "nonfinite": nonfinite(logits),
    }


def router_statistics(accumulators: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics from (summed) `router_accumulators`.

    Returns:
        load [E]: rows of each expert over the mean, >= 0; 1 where balanced.
        load_max: of the expert with the most rows, 1 ... E.
        unused: fraction of experts without a row, 0 ... 1.
        entropy: mean over tokens in nats, 0 ... log E.
        entropy_share: that over log E; NaN for one expert.
    """
    rows = accumulators["rows"]
    entropy = accumulators["entropy_sum"] / accumulators["tokens"]
    largest = math.log(len(rows))
    return narrow({
        "load": rows / rows.mean(),
        "load_max": rows.max() / rows.mean(),
        "unused": (rows == 0).double().mean(),
        "entropy": entropy,
        "entropy_share": entropy / largest if largest else entropy * torch.nan,
        "nonfinite": accumulators["nonfinite"],
    })  # fmt: skip
