"""Passes over the attention matrix a block of rows at a time, given the lse: never a T x T matrix.

Values that the fused forward does not return (entropy, the largest logit, the mass of each key) are recomputed from q,
k and the saved lse, at the cost of q k^T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sink_kernels.masks import forbidden
from sink_kernels.options import Options

# 4 MB of float32: a block that stays in a core's cache.
_BLOCK_ELEMENTS = 2**20


def logit_blocks(q: Tensor, k: Tensor, options: Options) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows, keys, logits [B, Hkv, G, rows, keys] in float32 or wider), -inf where forbidden.

    `keys` reaches from the first key any of the rows may see to the last.
    """
    batch, heads, tokens, head_dim = q.shape
    kv_heads = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k.to(wide)
    positions = torch.arange(tokens, device=q.device)
    rows_a_block = max(16, min(tokens, _BLOCK_ELEMENTS // (batch * heads * tokens)))
    # Last rows first: they see the most keys, so later blocks fit into memory freed by earlier ones.
    for start in reversed(range(0, tokens, rows_a_block)):
        stop = min(start + rows_a_block, tokens)
        first = 0 if options.window is None else max(0, start - options.window + 1)
        rows, keys = slice(start, stop), slice(first, stop)
        block = (q[:, :, rows].to(wide) * options.scale).reshape(batch, kv_heads, -1, head_dim)
        logits = block @ k[:, :, keys].transpose(-1, -2)
        if options.softcap is not None:
            logits = options.softcap * torch.tanh(logits / options.softcap)
        logits = logits.view(batch, kv_heads, heads // kv_heads, stop - start, stop - first)
        mask = forbidden(positions[rows], positions[keys], options.window)
        yield rows, keys, logits.masked_fill(mask, float("-inf"))


def statistics(
    q: Tensor, k: Tensor, lse: Tensor, sink: Tensor | None, options: Options, names: Sequence[str]
) -> dict[str, Tensor]:
    """The named statistics [B, H, T] in float32 of the softmax kinds; `sink` [H] or None for no sink."""
    if not names:
        return {}
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        logit = None if sink is None else sink.to(lse.dtype).view(1, -1, 1)
        taken: dict[str, Tensor] = {}
        for name in names:
            if name == "lse":
                taken[name] = lse
            elif name == "first_key_mass":
                taken[name] = first_key_mass(q, k, lse, options)
            elif name == "sink_mass":
                taken[name] = torch.zeros_like(lse) if logit is None else (logit - lse).exp()
        if "entropy" in names or "max_logit" in names:
            taken["entropy"], taken["max_logit"] = entropy_and_max_logit(q, k, lse, logit, options)
        return {name: taken[name].float() for name in names}


def entropy_and_max_logit(
    q: Tensor, k: Tensor, lse: Tensor, sink_logit: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """(entropy, max_logit), both [B, H, T], of the softmax kinds: H_i = lse_i - sum_j P_ij s_ij - P_i,sink sink_h."""
    entropies, maxima = [], []
    for rows, _, logits in logit_blocks(q, k, options):
        flat = logits.flatten(1, 2)
        row_lse = lse[:, :, rows]
        maxima.append(flat.amax(-1))
        weights = (flat - row_lse.unsqueeze(-1)).exp()
        # 0 * -inf at forbidden keys is NaN; they contribute nothing.
        expected = (weights * flat.clamp_min(torch.finfo(flat.dtype).min)).sum(-1)
        entropies.append(row_lse - expected)
    entropy = torch.cat(entropies[::-1], dim=-1)
    if sink_logit is not None:
        sink_mass = (sink_logit - lse).exp()
        # A sink at -inf holds no mass and adds nothing.
        entropy = entropy - sink_mass * sink_logit.clamp_min(torch.finfo(lse.dtype).min)
    return entropy, torch.cat(maxima[::-1], dim=-1)


def first_key_mass(q: Tensor, k: Tensor, lse: Tensor, options: Options) -> Tensor:
    """P_i0 = exp(s_i0 - lse_i) [B, H, T] of the softmax kinds, in O(T * D)."""
    batch, heads, tokens, head_dim = q.shape
    kv_heads = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    first_key = k[:, :, 0].to(wide) * options.scale
    logits = (q.to(wide).reshape(batch, kv_heads, -1, head_dim) @ first_key.unsqueeze(-1)).view(batch, heads, tokens)
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    mass = (logits - lse).exp()
    if options.window is not None:
        mass = mass.masked_fill(torch.arange(tokens, device=q.device) >= options.window, 0.0)
    return mass
