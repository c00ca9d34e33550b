"""The public entry point: causal attention with sinks, gates and statistics, dispatched to the best backend."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TypedDict, Unpack, overload

import torch
from torch import Tensor

from sink_kernels import attention_op, flash_attention4, flash_cpu, reference
from sink_kernels.launching import runs_kernels
from sink_kernels.options import Backend, Normalizer, NormalizerFunction, Options, Statistic
from sink_kernels.validation import validate_attention

_FUSED = {"flash": flash_cpu, "triton": attention_op, "fa4": flash_attention4}


class _Arguments(TypedDict, total=False):
    normalizer: Normalizer | NormalizerFunction
    sink: Tensor | None
    bias: float | None
    gate: Tensor | None
    clip: tuple[float, float] | None
    scale: float | None
    window: int | None
    softcap: float | None
    backend: Backend


@overload
def attention(  # type: ignore[overload-overlap]
    q: Tensor, k: Tensor, v: Tensor, *, stats: tuple[()] = ..., **arguments: Unpack[_Arguments]
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    stats: Sequence[Statistic],
    numbers: Tensor | None = None,
    **arguments: Unpack[_Arguments],
) -> tuple[Tensor, dict[str, Tensor]]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    normalizer: Normalizer | NormalizerFunction = "softmax",
    sink: Tensor | None = None,
    bias: float | None = None,
    gate: Tensor | None = None,
    clip: tuple[float, float] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    stats: Sequence[Statistic] = (),
    numbers: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Causal attention. See `sink_kernels.reference` for the formulas of every normalizer.

    Args:
        q: queries [B, H, T, D], any strides.
        k: keys [B, Hkv, T, D]; H must be a multiple of Hkv (grouped-query attention without repeating heads).
        v: values [B, Hkv, T, D].
        normalizer: "softmax"; "off_by_one" (a sink logit fixed at 0); "learnable_sink" (a logit per head, `sink`);
            "sigmoid" (no normalization, needs `bias`); "clipped_softmax" (needs `clip`). Or a function of the causal
            scores [B, H, T, T], float32 or wider and -inf where forbidden, that returns the weights, of the same shape
            and not negative; weights on forbidden keys are ignored. Supported only by "reference".
        sink: logit per head [H], float32, any value; -inf is plain softmax.
        bias: number added to every logit of sigmoid attention; -log(context length) is usual.
        gate: pre-activations [B, H, T] (head-wise) or [B, H, T, D] (element-wise); out is multiplied by their sigmoid.
        clip: (gamma, zeta) with gamma <= 0, zeta >= 1; gamma = -alpha / context length, zeta = 1 is usual.
        scale: factor of q . k; D ** -0.5 by default.
        window: number of keys a query sees, including its own; all by default.
        softcap: limit of the scaled logits, s <- cap * tanh(s / cap).
        stats: names of the statistics to return (below).
        numbers: N per key and query head [B, H, T, N], for the statistic `weighted_sum`; only with `stats`.
        backend: "auto" uses "triton" on a GPU and "flash" on the CPU if they support the call, else "reference".
            "triton": everything except clipped_softmax, functions and float64, D up to 256. "flash": softmax,
            off_by_one and learnable_sink. "fa4": the same without softcap, by an installed FlashAttention-4. A named
            backend is used, or rejected with one that supports the call.

    Returns:
        out [B, H, T, D] in q's dtype, or (out, {name: Tensor}) if `stats` is not empty. Under torch.autocast q, k and v
        are cast first, as in torch's own attention.

    Statistics, each [B, H, T] float32 and not differentiable, one number per query (key_mass: per key):
        lse: log of the row's denominator, sink included; for clipped_softmax that of the inner softmax; for
            sigmoid the log of the row's total mass, log sum_j sigmoid(s_ij + bias); for a function likewise.
        first_key_mass: weight on key 0.
        own_key_mass: weight on the query's own key.
        previous_key_mass: weight on the key before that; 0 for query 0.
        row_mass: sum_j P_ij of the weights as used, without the sink's: 1 - sink_mass in the softmax kinds.
        sink_mass: weight on the sink, exp(sink - lse); 0 without a sink.
        entropy: of the row's weights in nats, including the sink's.
        max_logit: largest s_ij; neither the sink nor the sigmoid's bias counts.
        key_mass: what a key receives from all queries, sum_i P_ij; see `sink_kernels.key_mass`.
        weighted_sum: sum_j P_ij x_j of the `numbers` x [B, H, T, N], returned where these are given.
    The rows of sigmoid, clipped_softmax and a function need not sum to 1: the masses on keys, entropy and weighted_sum
    are those of the row *renormalized* to sum to 1, a proxy; times row_mass they are those of the weights as used. A
    clipped row or a function's may be empty: all are then 0.
    """
    device_type = q.device.type
    if torch.is_autocast_enabled(device_type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    options = validate_attention(
        q,
        k,
        v,
        normalizer=normalizer,
        sink=sink,
        bias=bias,
        gate=gate,
        clip=clip,
        scale=scale,
        window=window,
        softcap=softcap,
        stats=stats,
        numbers=numbers,
        backend=backend,
    )
    out, taken = _backend(backend, q, options).attend(q, k, v, sink, gate, options, stats, numbers)
    return (out, taken) if stats else out


def _backend(name: str, q: Tensor, options: Options) -> ModuleType:
    """The module that computes the call; ValueError if the named one does not support it."""
    if name == "reference":
        return reference
    if name == "auto":
        fused = attention_op if runs_kernels(q.device) else flash_cpu
        return fused if fused.unsupported(q, options) is None else reference
    module = _FUSED[name]
    reason = module.unsupported(q, options)
    if reason is not None:
        raise ValueError(reason)
    return module
