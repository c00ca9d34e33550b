"""Cross-entropy over the vocabulary, in chunks of rows: on a CPU of the logits, on a GPU of the head's product too.

torch's own writes the log-probabilities, their gradient and the gradient of the logits to memory, each as large as the
logits. On a CPU only the last is written: a chunk's probabilities, which fit into the cache, are computed again in the
backward pass. On a GPU the logits of a chunk are all there is: both gradients of the head are computed with the loss.
Not by torch's own op, whose bfloat16 loss is rounded to bfloat16 (2.14), nor by Liger's, which waits for the GPU twice
a step (0.8.5).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**18  # logits, 1 MiB in float32
GPU_CHUNK = 2**27  # logits, 512 MiB in float32


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, computed in float32 or wider.

    Args:
        logits: [N, V].
        targets: token ids [N], none of which is ignored.
    """
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Chunked.apply(logits, targets)
    return F.cross_entropy(logits.to(_wide(logits)), targets)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the logits x W^T, computed in float32 or wider.

    Args:
        x: what the head reads [N, D].
        weight: the head's [V, D].
        targets: token ids [N], none of which is ignored.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x, weight = (each.to(torch.get_autocast_dtype(kind)) for each in (x, weight))
    if without_logits(kind, x.dtype) and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():  # which a Function cannot see: it would compute the gradients too
            x, weight = x.detach(), weight.detach()
        return _Projected.apply(x, weight, targets)
    return cross_entropy(F.linear(x, weight), targets)


def without_logits(device: str, dtype: torch.dtype) -> bool:
    """Whether `linear_cross_entropy` avoids the whole logits: on a GPU, but in float16, whose loss is scaled later.

    Args:
        device: its type.
        dtype: of the product with the head.
    """
    return device == "cuda" and dtype != torch.float16


def loss_memory(
    rows: int, width: int, vocab_size: int, device: str, dtype: torch.dtype, whole_logits: bool = False
) -> int:
    """Bytes of `linear_cross_entropy` at its peak, without its arguments.

    Args:
        rows: number of tokens N.
        width: D.
        vocab_size: V.
        device: its type.
        dtype: of the product with the head.
        whole_logits: whether something else needs the logits.
    """
    if whole_logits or not without_logits(device, dtype):
        # In float32: the logits, their log-softmax, and two gradients of their size, three of these at once.
        return 3 * 4 * rows * vocab_size
    wide = _wide_of(dtype).itemsize
    chunk, head, half = min(rows, _rows(GPU_CHUNK, vocab_size)) * vocab_size, vocab_size * width, dtype.itemsize
    # Logits and log-probabilities of a chunk, or its gradient and what it adds to the head's.
    return rows * width * half + head * wide + max(2 * chunk * wide, (chunk + head) * half)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats [B, T] float64 on the host, computed in float32 or wider, a row at a time.

    Args:
        logits: [B, T, V].
        targets: token ids [B, T].
    """
    rows = zip(logits, targets.to(logits.device), strict=True)
    return torch.stack([F.cross_entropy(row.to(_wide(row)), ids, reduction="none") for row, ids in rows]).double().cpu()


def _wide(logits: Tensor) -> torch.dtype:
    return _wide_of(logits.dtype)


def _wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows(logits: int, vocab_size: int) -> int:
    """Of a chunk with so many logits."""
    return max(1, logits // vocab_size)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of each; the first is [N, V]."""
    rows = _rows(CHUNK, tensors[0].shape[1])
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


class _Projected(torch.autograd.Function):
    """Of the logits x W^T, never more than a chunk: the gradients are computed with the loss and scaled afterward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        of_x, of_weight = ctx.needs_input_grad[:2]
        dx = torch.empty_like(x) if of_x else None
        dw = torch.zeros_like(weight, dtype=_wide(weight)) if of_weight else None
        rows = _rows(GPU_CHUNK, len(weight))
        total = x.new_zeros((), dtype=_wide(x))
        for first in range(0, len(x), rows):
            chunk = slice(first, first + rows)
            total += _add_gradients(
                x[chunk], weight, targets[chunk, None], None if dx is None else dx[chunk], dw, len(x)
            )
        ctx.save_for_backward(x, weight, targets, dx, None if dw is None else dw.to(weight.dtype))
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, targets, dx, dw = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # the gradient will be differentiated: `create_graph`
            wanted = [each for each, needed in ((x, of_x), (weight, of_weight)) if needed]
            loss = cross_entropy(F.linear(x, weight), targets)
            found = iter(torch.autograd.grad(loss, wanted, gradient, create_graph=True))
            return next(found) if of_x else None, next(found) if of_weight else None, None
        return dx * gradient if of_x else None, dw * gradient if of_weight else None, None


def _add_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, dx: Tensor | None, dw: Tensor | None, count: int
) -> Tensor:
    """The sum of a chunk's losses; its part of the gradients of their mean over `count` tokens, in place.

    Args:
        x: [n, D].
        weight: [V, D].
        targets: [n, 1].
        dx: [n, D], written; None where it is not needed.
        dw: [V, D], added to.
        count: number of tokens in all.
    """
    loss, gradient = _of_logits(F.linear(x, weight).to(_wide(x)), targets, count)
    gradient = gradient.to(x.dtype)
    if dx is not None:
        torch.mm(gradient, weight, out=dx)
    if dw is not None:
        dw += gradient.t() @ x
    return loss


def _of_logits(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The sum of the losses of logits [n, V], and the gradient of their mean over `count` tokens by the logits."""
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(1, targets).sum()
    difference = log_p.exp_().scatter_add_(1, targets, log_p.new_full(targets.shape, -1.0))
    return loss, difference.div_(count)
