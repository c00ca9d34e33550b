"""The Triton GatedNorm as torch custom ops. Triton is imported only when an op runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sink_kernels.launching import triton_unsupported

MAX_RANK = 128


def unsupported(x: Tensor, w_down: Tensor, w_up: Tensor) -> str | None:
    """Why this backend does not support the call, and what does; None if it does."""
    reason = triton_unsupported("x", x)
    if reason is not None:
        return reason
    if w_down.shape[0] > MAX_RANK:
        return f"backend 'triton' needs ranks up to {MAX_RANK}, w_down has {w_down.shape[0]}: use backend='reference'"
    if w_up.shape[0] != x.shape[-1]:
        return "backend 'triton' supports a gate per channel, w_up is a gate per token: use backend='reference'"
    return None


def gated_norm(
    x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None,
    eps: float, offset: float, stats: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """y like x [..., D] and the named statistics [D]; arguments as in `sink_kernels.gated_norm`."""
    y, _, _, absmax, fourth = gated_norm_forward(
        x.reshape(-1, x.shape[-1]), weight, w_down, w_up, pre_affine, eps, offset, len(stats) > 0
    )
    taken = {"absmax": absmax, "fourth_moment": fourth}
    return y.view(x.shape), {name: taken[name] for name in stats}


@torch.library.custom_op("sink_kernels::gated_norm_forward", mutates_args=())
def gated_norm_forward(
    x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None,
    eps: float, offset: float, stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y [M, D], 1 / rms [M], h [M, R], absmax [D], fourth moment [D]) of x [M, D]."""
    from sink_kernels import triton_gated_norm

    return triton_gated_norm.forward(x, weight, w_down, w_up, pre_affine, eps, offset, stats)


@torch.library.custom_op("sink_kernels::gated_norm_backward", mutates_args=())
def gated_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None,
    rstd: Tensor, h: Tensor, offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dweight, dw_down, dw_up, dpre_affine); the last is empty without PreAffine."""
    from sink_kernels import triton_gated_norm

    return triton_gated_norm.backward(dy, x, weight, w_down, w_up, pre_affine, rstd, h, offset)


@gated_norm_forward.register_fake
def _(x: Tensor, weight: Tensor, w_down: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    stats = others[-1]
    rows, width = x.shape
    absmax, fourth = (x.new_empty(width if stats else 0, dtype=torch.float32) for _ in range(2))
    rstd = x.new_empty(rows, dtype=torch.float32)
    h = x.new_empty((rows, w_down.shape[0]), dtype=torch.float32)
    return x.new_empty((rows, width)), rstd, h, absmax, fourth


@gated_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = [p.new_empty(p.shape) for p in (weight, w_down, w_up)]
    dpre = x.new_empty(0) if pre_affine is None else pre_affine.new_empty(pre_affine.shape)
    return x.new_empty(x.shape), parameters[0], parameters[1], parameters[2], dpre


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, w_down, w_up, pre_affine, _, offset, _ = inputs
    rstd, h = output[1:3]
    ctx.save_for_backward(x, weight, w_down, w_up, pre_affine, rstd, h)
    ctx.offset = offset
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *saved, rstd, h = ctx.saved_tensors
    *grads, dpre = gated_norm_backward(dy, *saved, rstd, h, ctx.offset)
    return *grads, None if saved[4] is None else dpre, None, None, None


gated_norm_forward.register_autograd(_backward, setup_context=_setup_context)
