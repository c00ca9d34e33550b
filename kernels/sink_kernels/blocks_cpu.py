"""Attention a block of rows at a time, for what torch's flash attention lacks: capped logits.

Never a T x T matrix: the backward pass computes each block's weights again, P_ij = exp(s_ij - lse_i), and with
delta_i = dO_i . o_i and s = cap * tanh(u / cap) of the scaled logits u

    dV_j = sum_i P_ij dO_i        dU_ij = P_ij (dO_i . v_j - delta_i) (1 - (s_ij / cap)^2)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sink_kernels.options import Options
from sink_kernels.row_blocks import logit_blocks


class BlockAttention(torch.autograd.Function):
    """(q, k, v, sink [H] or None) -> (out, lse [B, H, T] with the sink, not differentiable)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=wide, device=q.device)
        values = v.to(wide)
        logit = None if sink is None else sink.to(wide).view(1, -1, 1)
        for rows, keys, logits in logit_blocks(q, k, options):
            total = logits.logsumexp(-1).flatten(1, 2)
            lse[:, :, rows] = total if logit is None else torch.logaddexp(total, logit)
            weights = _weights(logits, lse[:, :, rows])
            out[:, :, rows] = (weights @ values[:, :, keys]).view(*q.shape[:2], -1, q.shape[3]).to(q.dtype)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        ctx.options = options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, out, lse = ctx.saved_tensors
        options, (batch, heads, _, head_dim), wide = ctx.options, q.shape, lse.dtype
        grad, keys_of, values = grads[0].to(wide), k.to(wide), v.to(wide)
        delta = (grad * out).sum(-1)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v))
        for rows, keys, logits in logit_blocks(q, k, options):

            def by_kv_head(x: Tensor, rows: slice = rows) -> Tensor:
                return x[:, :, rows].reshape(batch, k.shape[1], -1, *x.shape[3:])

            weights, block_grad = _weights(logits, lse[:, :, rows]), by_kv_head(grad)
            dv[:, :, keys] += weights.mT @ block_grad
            dlogits = weights * (block_grad @ values[:, :, keys].mT - by_kv_head(delta).unsqueeze(-1))
            if options.softcap is not None:
                # A forbidden key's -inf would make 0 * inf.
                dlogits *= 1 - (logits.flatten(2, 3).clamp_min(-options.softcap) / options.softcap).square()
            dlogits *= options.scale
            dq[:, :, rows] = (dlogits @ keys_of[:, :, keys]).view(batch, heads, -1, head_dim)
            dk[:, :, keys] += dlogits.mT @ by_kv_head(q).to(wide)
        dsink = None
        if sink is not None and ctx.needs_input_grad[3]:
            sink_mass = torch.exp(sink.to(wide).view(1, -1, 1) - lse)
            dsink = -(sink_mass * delta).sum((0, 2)).to(sink.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dsink, None


def _weights(logits: Tensor, lse: Tensor) -> Tensor:
    """P [B, Hkv, G * rows, keys] of logits [B, Hkv, G, rows, keys] and lse [B, H, rows]."""
    return (logits - lse.view(logits.shape[:4]).unsqueeze(-1)).exp().flatten(2, 3)
