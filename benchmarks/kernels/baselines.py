"""Other implementations of the same functions, each imported only if installed.

An unavailable baseline is listed with the reason, never silently missing from a table.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionRun = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
NormRun = Callable[[Tensor, Tensor], Tensor]


class AttentionBaseline(NamedTuple):
    """`run(q, k, v, sink)` in SDPA's layout; `sink`: whether it supports one."""

    name: str
    sink: bool
    run: AttentionRun


def attention_baselines(device: torch.device) -> tuple[list[AttentionBaseline], dict[str, str]]:
    """(the available baselines, why the others are missing)."""
    baselines, missing = [], {}
    for name, sink, build in (
        ("SDPA flash", False, lambda: _sdpa("FLASH_ATTENTION")),
        ("SDPA cuDNN", False, lambda: _sdpa("CUDNN_ATTENTION")),
        ("FlexAttention, lse rescale", True, lambda: _flex(device)),
        ("FlashAttention-4", True, lambda: _flash_attention4(device)),
        ("fla parallel_attn", True, _fla),
    ):
        try:
            if device.type != "cuda" and name != "SDPA flash":
                raise ImportError(f"runs on a GPU only, this is {device.type}")
            baselines.append(AttentionBaseline(name, sink, build()))
        except ImportError as reason:
            missing[name] = str(reason)
    return baselines, missing


def norm_baselines(device: torch.device) -> tuple[dict[str, NormRun], dict[str, str]]:
    """RMSNorm without a gate: (the available baselines, why the others are missing)."""
    baselines: dict[str, NormRun] = {"torch RMSNorm": lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6)}
    missing = {}
    try:
        if device.type != "cuda":
            raise ImportError(f"runs on a GPU only, this is {device.type}")
        liger = importlib.import_module("liger_kernel.transformers.functional").liger_rms_norm
        # By default its backward overwrites the incoming gradient, which timing reuses.
        baselines["Liger RMSNorm"] = lambda x, weight: liger(x, weight, 1e-6, in_place=False)
    except ImportError as reason:
        missing["Liger RMSNorm"] = str(reason)
    return baselines, missing


def _sdpa(backend: str) -> AttentionRun:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def _flex(device: torch.device) -> AttentionRun:
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    masks: dict[int, Any] = {}

    def run(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        tokens = q.shape[2]
        if tokens not in masks:
            masks[tokens] = create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=device.type)
        if sink is None:
            return compiled(q, k, v, block_mask=masks[tokens])
        out, aux = compiled(q, k, v, block_mask=masks[tokens], return_aux=AuxRequest(lse=True))
        return out * torch.sigmoid(aux.lse - sink.view(1, -1, 1)).unsqueeze(-1).to(out.dtype)

    return run


def _flash_attention4(device: torch.device) -> AttentionRun:
    from sink_kernels import attention

    importlib.import_module("flash_attn.cute.interface")
    if torch.cuda.get_device_capability(device)[0] not in (9, 10, 11):
        raise ImportError("runs on Hopper and Blackwell only")

    def run(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        return attention(q, k, v, normalizer="softmax" if sink is None else "learnable_sink", sink=sink, backend="fa4")

    return run


def _fla() -> AttentionRun:
    parallel_attn = importlib.import_module("fla.ops.attn.parallel").parallel_attn

    def run(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        return parallel_attn(q, k, v, scale=q.shape[-1] ** -0.5, sink_bias=sink).transpose(1, 2)

    return run
