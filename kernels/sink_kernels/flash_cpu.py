"""Training on the CPU: torch's own flash attention, with the sink added exactly afterward.

torch returns o0 = softmax(s) v and lse0. A sink c without a value only changes the denominator of a row:

    o = sigmoid(lse0 - c) * o0        lse = log(exp(lse0) + exp(c))

For the backward the true weights are P_ij = exp(s_ij - lse) and dS_ij = P_ij (dO_i . v_j - dO_i . o_i). torch's flash
backward computes P = exp(s - lse_in) and delta = rowsum(dO * out_in), so given the *rescaled* out and the lse
*with* the sink it returns the exact dq, dk, dv. The sink's own gradient is dc = -sum_i exp(c - lse_i) (dO_i . o_i).

On short sequences torch's half-precision backward is two to three times slower than float32, which is used instead.
torch has no capped logits, and takes a window only as a T x T mask: both go through `blocks_cpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sink_kernels.blocks_cpu import BlockAttention
from sink_kernels.options import Options
from sink_kernels.row_blocks import statistics

_AVAILABLE = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu") and hasattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward"
)
if _AVAILABLE:
    _forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    _torch_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# Up to this length the float32 backward with casts is faster: 0.3 to 0.6 of the time up to 128 tokens, 0.9 at 192.
_SHORT = 192


def unsupported(q: Tensor, options: Options) -> str | None:
    """Why this backend does not support the call, and what does; None if it does."""
    if q.device.type != "cpu":
        return f"backend 'flash' runs on the CPU, q is on {q.device}: use backend='auto' or 'reference'"
    if not _AVAILABLE:
        return f"torch {torch.__version__} has no flash attention for the CPU: use backend='reference'"
    if options.renormalized:
        return f"backend 'flash' cannot normalize by {options.normalizer_name}: use backend='reference'"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, options: Options, stats: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention of q [B, H, T, D] over k, v [B, Hkv, T, D]: out [B, H, T, D] in q's dtype, statistics [B, H, T]."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if options.has_sink and sink is None:
        sink = torch.zeros(q.shape[1], dtype=torch.float32, device=q.device)
    if options.window is not None or options.softcap is not None:
        out, lse = BlockAttention.apply(q, k, v, sink, options)
    elif sink is not None or (_widens(q) and torch.is_grad_enabled()):
        out, lse = _Flash.apply(q, k, v, sink, options.scale)
    else:
        out, lse = _forward(q, k, v, 0.0, True, scale=options.scale)
    if gate is not None:
        opened = torch.sigmoid(gate).to(out.dtype)
        out = out * (opened if gate.dim() == 4 else opened.unsqueeze(-1))
    return out, statistics(q, k, lse, sink, options, stats)


def _widens(q: Tensor) -> bool:
    return q.dtype.itemsize == 2 and q.shape[2] <= _SHORT


class _Flash(torch.autograd.Function):
    """(q, k, v, sink [H] or None) -> (out, lse [B, H, T] with the sink, not differentiable)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, 0.0, True, scale=scale)
        if sink is not None:
            logit = sink.to(lse.dtype).view(1, -1, 1)
            # The factor is cast, because mixing half and single precision costs ten times as much on the CPU. Not in
            # place: torch.compile of torch 2.11 would silently give wrong gradients.
            out = out * torch.sigmoid(lse - logit).to(out.dtype).unsqueeze(-1)
            lse = torch.logaddexp(lse, logit)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, out, lse = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        dtype = q.dtype
        if _widens(q):
            grad, q, k, v, out = (x.float() for x in (grad, q, k, v, out))
        dq, dk, dv = _torch_backward(grad, q, k, v, out, lse, 0.0, True, scale=ctx.scale)
        dsink = None
        if sink is not None and ctx.needs_input_grad[3]:
            delta = (grad * out).sum(-1, dtype=lse.dtype)
            sink_mass = torch.exp(sink.to(lse.dtype).view(1, -1, 1) - lse)
            dsink = -(sink_mass * delta).sum((0, 2)).to(sink.dtype)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), dsink, None
