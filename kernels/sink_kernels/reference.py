"""The definition: causal attention over an explicit [T, T] matrix, in plain torch.

    s_ij = softcap(scale * q_i . k_j)                      for j <= i, and i - j < window
    softmax            P_ij = exp(s_ij) / sum_j exp(s_ij)
    off_by_one         P_ij = exp(s_ij) / (1 + sum_j exp(s_ij))
    learnable_sink     P_ij = exp(s_ij) / (exp(sink_h) + sum_j exp(s_ij))        gpt-oss; Xiao et al., arXiv 2309.17453
    sigmoid            P_ij = 1 / (1 + exp(-s_ij - bias))                        Ramapuram et al., arXiv 2409.04431
    clipped_softmax    P_ij = clip((zeta - gamma) * softmax_ij + gamma, 0, 1)    Bondarenko et al., arXiv 2306.12929
    a function f       P_ij = f(s)_ij                                            any other normalizer, row by row
    out_i = sigmoid(gate_i) * sum_j P_ij v_j                                     Qiu et al., arXiv 2505.06708

Works on every device and in float64; half precision is computed in float32. The fast paths are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sink_kernels.masks import causal_mask
from sink_kernels.options import Options


def attend(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, options: Options,
    stats: Sequence[str], numbers: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Attention of q [B, H, T, D] over k, v [B, Hkv, T, D]: out [B, H, T, D] in q's dtype, statistics [B, H, T]."""
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        group = q.shape[1] // k.shape[1]
        logits = causal_logits(q.to(wide), repeat_heads(k.to(wide), group), options)
        sink_logit = sink_column(sink, q.shape[1], wide, q.device) if options.has_sink else None
        weights = normalize(logits, sink_logit, options)
        out = weights @ repeat_heads(v.to(wide), group)
        if gate is not None:
            out = out * torch.sigmoid(gate.to(wide) if gate.dim() == 4 else gate.to(wide).unsqueeze(-1))
        with torch.no_grad():
            taken = statistics(logits.detach(), weights.detach(), sink_logit, options, stats, numbers)
        return out.to(q.dtype), taken


def causal_logits(q: Tensor, k: Tensor, options: Options) -> Tensor:
    """s [B, H, T, T], -inf where attention is forbidden."""
    logits = (q * options.scale) @ k.transpose(-1, -2)
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    return logits.masked_fill(causal_mask(q.shape[2], options.window, q.device), float("-inf"))


def normalize(logits: Tensor, sink_logit: Tensor | None, options: Options) -> Tensor:
    """P [B, H, T, T] of the causal logits; the sink's column is added, normalized over and dropped."""
    if sink_logit is not None:
        column = sink_logit.expand(*logits.shape[:3], 1)
        return torch.cat([logits, column], dim=-1).softmax(-1)[..., :-1]
    if callable(options.normalizer):
        weights = options.normalizer(logits)
        if not isinstance(weights, Tensor):
            raise ValueError(f"the normalizer gave a {type(weights).__name__}: it must give weights; return a tensor")
        if weights.shape != logits.shape or weights.dtype != logits.dtype:
            raise ValueError(
                f"the normalizer gave {tuple(weights.shape)} {weights.dtype} for scores {tuple(logits.shape)} "
                f"{logits.dtype}: it must keep both; reshape or cast its weights"
            )
        # Future keys stay masked, whatever the function returns for -inf.
        return weights.masked_fill(causal_mask(logits.shape[-1], options.window, logits.device), 0.0)
    if options.bias is not None:
        return torch.sigmoid(logits + options.bias)
    weights = logits.softmax(-1)
    if options.clip is not None:
        gamma, zeta = options.clip
        # As gamma <= 0, the zero of a forbidden key stays zero.
        weights = ((zeta - gamma) * weights + gamma).clamp(0.0, 1.0)
    return weights


def statistics(
    logits: Tensor, weights: Tensor, sink_logit: Tensor | None, options: Options,
    names: Sequence[str], numbers: Tensor | None,
) -> dict[str, Tensor]:  # fmt: skip
    """The named statistics [B, H, T] in float32; defined in `sink_kernels.attention`."""
    if not names and numbers is None:
        return {}
    if callable(options.normalizer) and not torch.compiler.is_compiling() and bool((weights < 0).any()):
        raise ValueError(
            f"the normalizer gave weights down to {float(weights.min()):.3g}, but statistics are of weights that are "
            "at least 0: clamp them, or leave the statistics of attention out"
        )
    # An empty row has no mass on any key and no entropy.
    mass = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny) if options.renormalized else weights.new_ones(())
    lse = log_total(logits, weights, sink_logit, options)
    taken: dict[str, Tensor] = {}
    for name in names:
        if name == "lse":
            value = lse
        elif name == "max_logit":
            value = logits.amax(-1)
        elif name == "first_key_mass":
            value = weights[..., 0] / mass
        elif name == "own_key_mass":
            value = weights.diagonal(dim1=-2, dim2=-1) / mass
        elif name == "previous_key_mass":
            value = F.pad(weights.diagonal(-1, -2, -1), (1, 0)) / mass
        elif name == "row_mass":
            value = weights.sum(-1)
        elif name == "key_mass":
            value = (weights / mass.unsqueeze(-1)).sum(2)
        elif name == "sink_mass":
            value = torch.zeros_like(lse) if sink_logit is None else (sink_logit.squeeze(-1) - lse).exp()
        else:
            value = -torch.special.xlogy(weights, weights).sum(-1)
            if options.renormalized:
                value = torch.where(weights.sum(-1) == 0, 0.0, value / mass + mass.log())
            if sink_logit is not None:
                sink_mass = (sink_logit.squeeze(-1) - lse).exp()
                value = value - torch.special.xlogy(sink_mass, sink_mass)
        taken[name] = value.float()
    if numbers is not None:
        taken["weighted_sum"] = (weights @ numbers.to(weights.dtype) / mass.unsqueeze(-1)).float()
    return taken


def log_total(logits: Tensor, weights: Tensor, sink_logit: Tensor | None, options: Options) -> Tensor:
    """log of a row's denominator (softmax kinds, sink included) or of its total mass (sigmoid, a function)."""
    if callable(options.normalizer) or options.normalizer == "sigmoid":
        return weights.sum(-1).log()
    lse = logits.logsumexp(-1)
    return lse if sink_logit is None else torch.logaddexp(lse, sink_logit.squeeze(-1).expand_as(lse))


def sink_column(sink: Tensor | None, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The sink's logit as [1, H, 1, 1]; zero for off_by_one."""
    if sink is None:
        return torch.zeros(1, heads, 1, 1, dtype=dtype, device=device)
    return sink.to(dtype).view(1, heads, 1, 1)


def repeat_heads(x: Tensor, group: int) -> Tensor:
    """[B, Hkv, T, D] -> [B, Hkv * group, T, D]: each key/value head serves `group` neighboring query heads."""
    return x if group == 1 else x.repeat_interleave(group, dim=1)
