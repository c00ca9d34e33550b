"""Cross-entropy over the vocabulary; on a CPU in chunks of rows that fit into the cache.

torch's own writes the log-probabilities, their gradient and the gradient of the logits to memory, each as large as the
logits. Here only the last is written: a chunk's probabilities are computed again in the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**18  # logits, 1 MiB in float32


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, computed in float32 or wider.

    Args:
        logits: [N, V].
        targets: token ids [N], none of which is ignored.
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Chunked.apply(logits, targets)
    return F.cross_entropy(logits.to(_wide(logits)), targets)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats [B, T] float64 on the host, computed in float32 or wider, a row at a time.

    Args:
        logits: [B, T, V].
        targets: token ids [B, T].
    """
    rows = zip(logits, targets.to(logits.device), strict=True)
    return torch.stack([F.cross_entropy(row.to(_wide(row)), ids, reduction="none") for row, ids in rows]).double().cpu()


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of each; the first is [N, V]."""
    rows = max(1, CHUNK // tensors[0].shape[1])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        sums = [F.cross_entropy(part.to(_wide(part)), own, reduction="sum") for part, own in _chunks(logits, targets)]
        return torch.stack(sums).sum() / len(targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        scale = gradient / len(targets)
        if torch.is_grad_enabled():  # the gradient will be differentiated: `create_graph`
            difference = torch.softmax(logits, dim=-1, dtype=_wide(logits)) - F.one_hot(targets, logits.shape[1])
            return (difference * scale).to(logits.dtype), None
        result = torch.empty_like(logits)
        for part, own, out in _chunks(logits, targets[:, None], result):
            difference = torch.softmax(part, dim=-1, dtype=_wide(part))
            difference.scatter_add_(1, own, difference.new_full(own.shape, -1.0))
            torch.mul(difference, scale, out=out)
        return result, None
