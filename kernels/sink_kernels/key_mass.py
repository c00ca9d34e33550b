"""The attention mass each key receives, from q, k and the saved lse: half a forward's work, no T x T matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from sink_kernels import attention_op, reference
from sink_kernels.launching import runs_kernels
from sink_kernels.options import Normalizer, NormalizerFunction
from sink_kernels.row_blocks import block_statistics, logit_blocks
from sink_kernels.validation import validate_scores


def key_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    normalizer: Normalizer | NormalizerFunction = "softmax",
    bias: float | None = None,
    clip: tuple[float, float] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Mass each key receives from all queries: sum_i P_ij, [B, H, T] in float32, not differentiable.

    `attention` returns the same as its statistic `key_mass`, on a CPU for less.

    Args:
        q: queries [B, H, T, D].
        k: keys [B, Hkv, T, D].
        lse: the statistic `lse` [B, H, T] of the same `attention` call. It includes the sink.
        normalizer, bias, clip, scale, window, softcap: as in that call.

    For the softmax kinds key mass and sink mass sum to T in every head. For sigmoid, clipped_softmax and a
    function the rows are renormalized to sum to 1 first, as in the statistic `first_key_mass`; a function receives all
    scores at once, in T x T memory. Dividing by the number of queries that see key j, T - j, gives the importance
    alpha_j of Gu et al., arXiv 2410.10781.
    """
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        options = validate_scores(
            q, k, normalizer=normalizer, bias=bias, clip=clip, scale=scale, window=window, softcap=softcap
        )
        if lse.shape != q.shape[:3] or lse.device != q.device:
            raise ValueError(
                f"lse has shape {tuple(lse.shape)} on {lse.device}: it must be [B, H, T] = {tuple(q.shape[:3])} on "
                f"{q.device}; take it from attention(..., stats=('lse',))"
            )
        if runs_kernels(q.device) and attention_op.unsupported(q, options) is None:
            return attention_op.key_mass(q, k, lse, *attention_op.flat(options))
        wide = torch.promote_types(q.dtype, torch.float32)
        if callable(normalizer):
            repeated = reference.repeat_heads(k.to(wide), q.shape[1] // k.shape[1])
            logits = reference.causal_logits(q.to(wide), repeated, options)
            weights = reference.normalize(logits, None, options)
            return (weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny)).sum(2).float()
        if not options.renormalized:
            return block_statistics(q, k, lse.to(wide), None, options, ("key_mass",), None)["key_mass"].float()
        mass = torch.zeros(q.shape[:3], dtype=wide, device=q.device)
        for rows, keys, blocks in logit_blocks(q, k, options):
            logits = blocks.flatten(1, 2)
            row_lse = lse[:, :, rows].to(logits.dtype).unsqueeze(-1)
            if options.clip is None:
                assert options.bias is not None
                weights = torch.sigmoid(logits + options.bias) / row_lse.exp()
            else:
                gamma, zeta = options.clip
                weights = ((zeta - gamma) * (logits - row_lse).exp() + gamma).clamp(0.0, 1.0)
                weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
            mass[:, :, keys] += weights.sum(2)
        return mass.float()
