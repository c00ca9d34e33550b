"""Training on the CPU: torch's own flash attention, with the sink added exactly afterward.

torch returns o0 = softmax(s) v and lse0. A sink c without a value only changes the denominator of a row:

    o = sigmoid(lse0 - c) * o0        lse = log(exp(lse0) + exp(c))

For the backward the true weights are P_ij = exp(s_ij - lse) and dS_ij = P_ij (dO_i . v_j - dO_i . o_i). torch's flash
backward computes P = exp(s - lse_in) and delta = rowsum(dO * out_in), so given the *rescaled* out and the lse
*with* the sink it returns the exact dq, dk, dv. The sink's own gradient is dc = -sum_i exp(c - lse_i) (dO_i . o_i).

On short sequences torch's half-precision backward is two to three times slower than float32, which is used instead.
torch takes a window only as a mask, so it runs a block of rows at a time, over the keys those rows may see: their mask
is small, and keys outside the window cost nothing. torch has no capped logits: they go through `blocks_cpu`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sink_kernels.blocks_cpu import BlockAttention
from sink_kernels.masks import forbidden
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
# Rows of a windowed block: of 32 to 512, about the fastest forward for windows of 128 and 512 keys.
_ROWS = 128


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
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, options: Options,
    stats: Sequence[str], numbers: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Attention of q [B, H, T, D] over k, v [B, Hkv, T, D]: out [B, H, T, D] in q's dtype, statistics [B, H, T]."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if options.has_sink and sink is None:
        sink = torch.zeros(q.shape[1], dtype=torch.float32, device=q.device)
    windowed = options.window is not None and options.window < q.shape[2]
    if options.softcap is not None:
        out, lse = BlockAttention.apply(q, k, v, sink, options)
    elif windowed or sink is not None or (_widens(q) and torch.is_grad_enabled()):
        out, lse = _Flash.apply(q, k, v, sink, options.scale, options.window if windowed else None)
    else:
        out, lse = _forward(q, k, v, 0.0, True, scale=options.scale)
    if gate is not None:
        opened = torch.sigmoid(gate).to(out.dtype)
        out = out * (opened if gate.dim() == 4 else opened.unsqueeze(-1))
    return out, statistics(q, k, lse, sink, options, stats, numbers)


def _widens(q: Tensor) -> bool:
    return q.dtype.itemsize == 2 and q.shape[2] <= _SHORT


class _Flash(torch.autograd.Function):
    """(q, k, v, sink [H] or None) -> (out, lse [B, H, T] with the sink, not differentiable)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        if window is None:
            out, lse = _forward(q, k, v, 0.0, True, scale=scale)
        else:
            out, lse = _windowed_forward(q, k, v, scale, window)
        if sink is not None:
            logit = sink.to(lse.dtype).view(1, -1, 1)
            # The factor is cast, because mixing half and single precision costs ten times as much on the CPU. Not in
            # place: torch.compile of torch 2.11 would silently give wrong gradients.
            out = out * torch.sigmoid(lse - logit).to(out.dtype).unsqueeze(-1)
            lse = torch.logaddexp(lse, logit)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        ctx.scale, ctx.window = scale, window
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, out, lse = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        dtype = q.dtype
        if _widens(q):
            grad, q, k, v, out = (x.float() for x in (grad, q, k, v, out))
        if ctx.window is None:
            dq, dk, dv = _torch_backward(grad, q, k, v, out, lse, 0.0, True, scale=ctx.scale)
        else:
            dq, dk, dv = _windowed_backward(grad, q, k, v, out, lse, ctx.scale, ctx.window)
        dsink = None
        if sink is not None and ctx.needs_input_grad[3]:
            delta = (grad * out).sum(-1, dtype=lse.dtype)
            sink_mass = torch.exp(sink.to(lse.dtype).view(1, -1, 1) - lse)
            dsink = -(sink_mass * delta).sum((0, 2)).to(sink.dtype)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), dsink, None, None


def _windowed_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    """(out [B, H, T, D], lse [B, H, T]) without a sink."""
    blocks = [
        _forward(q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.0, False, attn_mask=mask, scale=scale)
        for rows, keys, mask in _blocks(q, window)
    ]
    outs, lses = zip(*blocks, strict=True)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _windowed_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv); the last two are sums over blocks, in float32 or wider."""
    dqs = []
    dk, dv = (torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (k, v))
    for rows, keys, mask in _blocks(q, window):
        given = (grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], lse[:, :, rows])
        block_dq, block_dk, block_dv = _torch_backward(*given, 0.0, False, attn_mask=mask, scale=scale)
        dqs.append(block_dq)
        dk[:, :, keys] += block_dk
        dv[:, :, keys] += block_dv
    return torch.cat(dqs, dim=2), dk, dv


def _blocks(q: Tensor, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows, the keys they may see, mask [rows, keys] that is added to the logits)."""
    tokens = q.shape[2]
    positions = torch.arange(tokens, device=q.device)
    for start in range(0, tokens, _ROWS):
        rows, keys = slice(start, start + _ROWS), slice(max(0, start - window + 1), start + _ROWS)
        banned = forbidden(positions[rows], positions[keys], window)
        yield rows, keys, torch.zeros(banned.shape, dtype=q.dtype, device=q.device).masked_fill(banned, float("-inf"))
