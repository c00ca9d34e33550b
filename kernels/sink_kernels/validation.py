"""Input validation before any launch: each message states the value, the limit and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sink_kernels.options import BACKENDS, NORMALIZERS, STATISTICS, NormalizerFunction, Options

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def validate_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    normalizer: str | NormalizerFunction,
    sink: Tensor | None,
    bias: float | None,
    gate: Tensor | None,
    clip: tuple[float, float] | None,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    stats: Sequence[str],
    numbers: Tensor | None,
    backend: str,
) -> Options:
    """Check every argument of `attention`; return its resolved options. Takes a few microseconds."""
    shape = q.shape
    options = validate_scores(
        q, k, normalizer=normalizer, bias=bias, clip=clip, scale=scale, window=window, softcap=softcap
    )
    if v.shape != k.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}, k has {tuple(k.shape)}: both must be [B, Hkv, T, D]; "
            "project values to the keys' heads and head dimension"
        )
    if v.dtype != q.dtype or v.device != q.device:
        raise ValueError(f"v is {v.dtype} on {v.device}, q is {q.dtype} on {q.device}: they must agree; cast or move v")
    if (sink is not None) != (normalizer == "learnable_sink"):
        raise ValueError(
            f"normalizer={normalizer!r} with sink {'missing' if sink is None else 'given'}: "
            "a sink [H] is valid only with normalizer='learnable_sink'"
        )
    if sink is not None:
        if sink.shape != shape[1:2]:
            raise ValueError(
                f"sink has shape {tuple(sink.shape)}, q has {shape[1]} heads: "
                f"the sink needs one logit per head, shape ({shape[1]},)"
            )
        if not sink.is_floating_point() or sink.device != q.device:
            raise ValueError(
                f"sink is {sink.dtype} on {sink.device}: it must be floating point (float32 is best) on {q.device}; "
                "cast or move the sink"
            )
    if gate is not None:
        if gate.shape != shape and gate.shape != shape[:3]:
            raise ValueError(
                f"gate has shape {tuple(gate.shape)}: it must be [B, H, T] = {tuple(shape[:3])} (head-wise) or "
                f"[B, H, T, D] = {tuple(shape)} (element-wise) pre-activations; reshape the gate"
            )
        if not gate.is_floating_point() or gate.device != q.device:
            raise ValueError(
                f"gate is {gate.dtype} on {gate.device}: it must be floating point on {q.device}; cast or move the gate"
            )
    for name in stats:
        if name not in STATISTICS:
            raise ValueError(f"unknown statistic {name!r}: choose among {', '.join(STATISTICS)}")
    if numbers is not None:
        if not stats:
            raise ValueError("numbers without stats: the sums of numbers are a statistic; name others, e.g. ('lse',)")
        wrong = numbers.dim() != 4 or numbers.shape[:3] != shape[:3] or numbers.shape[3] < 1
        if wrong or not numbers.is_floating_point() or numbers.device != q.device:
            raise ValueError(
                f"numbers are {tuple(numbers.shape)} {numbers.dtype} on {numbers.device}: they must be floating point, "
                f"N per key and query head, [B, H, T, N] = {(*shape[:3], 'N')}, on {q.device}"
            )
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose among {', '.join(BACKENDS)}")
    return options


def validate_scores(
    q: Tensor,
    k: Tensor,
    *,
    normalizer: str | NormalizerFunction,
    bias: float | None,
    clip: tuple[float, float] | None,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Options:
    """Check the inputs of the attention scores: q, k and the options; return the resolved options."""
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 4 or len(k_shape) != 4:
        raise ValueError(
            f"q has shape {tuple(q_shape)}, k has {tuple(k_shape)}: attention takes [B, H, T, D] and [B, Hkv, T, D]; "
            "reshape to 4 dimensions"
        )
    batch, heads, tokens, head_dim = q_shape
    if k_shape[0] != batch or k_shape[2] != tokens or k_shape[3] != head_dim:
        raise ValueError(
            f"q has shape {tuple(q_shape)}, k has {tuple(k_shape)}: B, T and D must agree "
            "(causal self-attention over one sequence: no cache, no cross attention)"
        )
    if tokens < 1 or head_dim < 1 or k_shape[1] < 1 or heads % k_shape[1] != 0:
        raise ValueError(
            f"q has shape {tuple(q_shape)}, k has {tuple(k_shape)}: T and D must be at least 1 and the {heads} query "
            f"heads a multiple of the {k_shape[1]} key/value heads; change the number of heads"
        )
    if q.dtype not in DTYPES:
        raise ValueError(
            f"q is {q.dtype}: supported are {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}; cast q"
        )
    if k.dtype != q.dtype or k.device != q.device:
        raise ValueError(f"k is {k.dtype} on {k.device}, q is {q.dtype} on {q.device}: they must agree; cast or move k")
    if not callable(normalizer) and normalizer not in NORMALIZERS:
        raise ValueError(f"unknown normalizer {normalizer!r}: choose among {', '.join(NORMALIZERS)}, or a function")
    if (bias is not None) != (normalizer == "sigmoid"):
        raise ValueError(
            f"normalizer={normalizer!r} with bias={bias}: a bias is valid only with normalizer='sigmoid' "
            "(-log(context length) is usual)"
        )
    if bias is not None and (isinstance(bias, Tensor) or not -math.inf < bias < math.inf):
        raise ValueError(f"bias={bias}: it must be a finite number; pass a float")
    if (clip is not None) != (normalizer == "clipped_softmax"):
        raise ValueError(
            f"normalizer={normalizer!r} with clip={clip}: clip=(gamma, zeta) is valid only with "
            "normalizer='clipped_softmax' (gamma = -alpha / context length, zeta = 1 is usual)"
        )
    if clip is not None and not (len(clip) == 2 and clip[0] <= 0.0 and clip[1] >= 1.0):
        raise ValueError(f"clip={clip}: it must be (gamma, zeta) with gamma <= 0 and zeta >= 1; stretch the interval")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: it counts the query's own key, so it must be at least 1; use None for all")
    if scale is not None and not 0.0 < scale < math.inf:
        raise ValueError(f"scale={scale}: it must be a positive finite number; use None for D ** -0.5")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap={softcap}: it must be a positive finite number; use None for no cap")
    return Options(
        normalizer,
        head_dim**-0.5 if scale is None else scale,
        window if window is not None and window < tokens else None,
        softcap,
        bias,
        clip,
    )
