"""An installed FlashAttention-4 (`pip install --pre flash-attn-4`, Hopper and Blackwell) as a backend.

It supports the sink logit in both passes and returns an lse that includes it, from which the statistics are
computed. Used only when named, because the package is a pre-release.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from sink_kernels.options import Options
from sink_kernels.row_blocks import statistics


def unsupported(q: Tensor, options: Options) -> str | None:
    """Why this backend does not support the call, and what does; None if it does."""
    if options.renormalized or options.softcap is not None:
        return f"backend 'fa4' has no softcap and cannot normalize by {options.normalizer_name}: use backend='auto'"
    if not _installed():
        return "FlashAttention-4 is not installed: pip install --pre flash-attn-4, or use backend='auto'"
    if q.device.type != "cuda":
        return f"backend 'fa4' runs on a GPU, q is on {q.device}: use backend='auto'"
    if torch.cuda.get_device_capability(q.device)[0] not in (9, 10, 11):
        return "backend 'fa4' runs on Hopper and Blackwell: use backend='triton'"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"backend 'fa4' supports bfloat16 and float16, q is {q.dtype}: cast q or use backend='auto'"
    if q.shape[3] % 8 != 0 or q.shape[3] > 128:
        return f"backend 'fa4' needs head dimensions up to 128 in steps of 8, q has {q.shape[3]}: use backend='triton'"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, options: Options,
    stats: Sequence[str], numbers: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Attention of q [B, H, T, D] over k, v [B, Hkv, T, D]: out [B, H, T, D] in q's dtype, statistics [B, H, T]."""
    flash_attn_func = importlib.import_module("flash_attn.cute.interface").flash_attn_func
    if options.has_sink:
        sink = torch.zeros(q.shape[1], device=q.device) if sink is None else sink.float().contiguous()
    out, lse = flash_attn_func(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        softmax_scale=options.scale,
        causal=True,
        window_size=(None, None) if options.window is None else (options.window - 1, 0),
        learnable_sink=sink,
        return_lse=True,
    )
    out = out.transpose(1, 2)
    if gate is not None:
        opened = torch.sigmoid(gate).to(out.dtype)
        out = out * (opened if gate.dim() == 4 else opened.unsqueeze(-1))
    return out, statistics(q, k, lse.detach(), sink, options, stats, numbers)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute.interface") is not None
    except ModuleNotFoundError:
        return False
