"""Passes over the attention matrix a block of rows at a time, given the lse: never a T x T matrix.

Values that the fused forward does not return (entropy, the largest logit, the mass of each key, weighted sums) are
recomputed from q, k and the saved lse, all in one pass, at the cost of q k^T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sink_kernels.masks import forbidden
from sink_kernels.options import Options

# How many keys before its own a statistic's key is.
BACK = {"own_key_mass": 0, "previous_key_mass": 1}
# 0.5 MB of float32: a block that stays in a core's cache.
_BLOCK_ELEMENTS = 2**17


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
        # Without a window all of the rows see the keys before the first of them.
        near = slice(start if options.window is None else first, stop)
        mask = forbidden(positions[rows], positions[near], options.window)
        logits[..., near.start - first :].masked_fill_(mask, float("-inf"))
        yield rows, keys, logits


def statistics(
    q: Tensor, k: Tensor, lse: Tensor, sink: Tensor | None, options: Options,
    names: Sequence[str], numbers: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The named statistics [B, H, T] in float32 of the softmax kinds, and `weighted_sum` where there are numbers.

    Args:
        q, k: queries [B, H, T, D] and keys [B, Hkv, T, D].
        lse: [B, H, T], sink included.
        sink: [H]; None for no sink.
        options: of the call.
        names: of statistics.
        numbers: [B, H, T, N], N per key.
    """
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        logit = None if sink is None else sink.to(lse.dtype).view(1, -1, 1)
        taken: dict[str, Tensor] = {}
        for name in names:
            if name == "lse":
                taken[name] = lse
            elif name == "first_key_mass":
                taken[name] = first_key_mass(q, k, lse, options)
            elif name in BACK:
                taken[name] = mass_back(q, k, lse, BACK[name], options)
            elif name == "sink_mass":
                taken[name] = torch.zeros_like(lse) if logit is None else (logit - lse).exp()
            elif name == "row_mass":
                taken[name] = torch.ones_like(lse) if logit is None else -torch.expm1(logit - lse)
        if numbers is not None or {"entropy", "max_logit", "key_mass"} & {*names}:
            taken |= block_statistics(q, k, lse, logit, options, names, numbers)
        wanted = names if numbers is None else (*names, "weighted_sum")
        return {name: taken[name].float() for name in wanted}


def block_statistics(
    q: Tensor, k: Tensor, lse: Tensor, sink_logit: Tensor | None, options: Options,
    names: Sequence[str], numbers: Tensor | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Those of the named statistics that need every weight, P_ij = exp(t_ij) with t = s - lse, in one pass.

    The entropy is H_i = log Z_i - sum_j P_ij t_ij / Z_i over keys and sink, where Z_i = sum_j P_ij is 1 up to the
    rounding of the lse. Without Z_i that rounding, up to |lse| * eps / 2, would be an error of a small entropy.
    """
    taken = {name: torch.zeros_like(lse) for name in ("entropy", "max_logit", "key_mass") if name in names}
    if numbers is not None:
        taken["weighted_sum"] = lse.new_empty(numbers.shape)
        # A product from the other side takes two to eight times as long.
        numbers = numbers.to(lse.dtype).mT.contiguous()
    total = torch.empty_like(lse)
    for rows, keys, logits in logit_blocks(q, k, options):
        row_lse = lse[:, :, rows]
        t = logits.flatten(1, 2).sub_(row_lse.unsqueeze(-1))
        if "max_logit" in taken:
            taken["max_logit"][:, :, rows] = t.amax(-1) + row_lse
        weights = t.exp()
        if "key_mass" in taken:
            taken["key_mass"][:, :, keys] += weights.sum(2)
        if numbers is not None:
            taken["weighted_sum"][:, :, rows] = (numbers[..., keys] @ weights.mT).mT
        if "entropy" in taken:
            total[:, :, rows] = weights.sum(-1)
            # 0 * -inf at forbidden keys is NaN; they contribute nothing.
            taken["entropy"][:, :, rows] = -t.clamp_min_(torch.finfo(t.dtype).min).mul_(weights).sum(-1)
    if "entropy" in taken:
        if sink_logit is not None:
            sink_t = sink_logit - lse
            total += sink_t.exp()
            # A sink at -inf holds no mass and adds nothing.
            taken["entropy"] -= sink_t.exp() * sink_t.clamp_min(torch.finfo(lse.dtype).min)
        taken["entropy"] = total.log() + taken["entropy"] / total
    return taken


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


def mass_back(q: Tensor, k: Tensor, lse: Tensor, back: int, options: Options) -> Tensor:
    """P_ij = exp(s_ij - lse_i) of the key `back` tokens before each query [B, H, T], 0 where there is none.

    In O(T * D), for the softmax kinds; of sigmoid rows, whose lse is the log of their total, the renormalized weight.
    """
    tokens, head_dim = q.shape[2:]
    if back >= tokens or (options.window is not None and back >= options.window):
        return torch.zeros_like(lse)
    wide = torch.promote_types(q.dtype, torch.float32)
    queries = q[:, :, back:].to(wide).reshape(*k.shape[:2], -1, tokens - back, head_dim)
    keys = (k[:, :, : tokens - back].to(wide) * options.scale).unsqueeze(2)
    logits = (queries * keys).sum(-1).flatten(1, 2)
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    if options.bias is not None:
        logits = F.logsigmoid(logits + options.bias)
    return F.pad((logits - lse[:, :, back:]).exp(), (back, 0))
