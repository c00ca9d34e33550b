"""The public entry point of the fused norm and gate of the residual stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack, get_args, overload

from torch import Tensor

from sink_kernels import gated_norm_op, gated_norm_reference
from sink_kernels.launching import runs_kernels
from sink_kernels.validation import DTYPES

NormStatistic = Literal["absmax", "fourth_moment"]
NormBackend = Literal["auto", "triton", "reference"]


class _Arguments(TypedDict, total=False):
    pre_affine: Tensor | None
    eps: float
    offset: float
    backend: NormBackend


@overload
def gated_norm(  # type: ignore[overload-overlap]
    x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, *, stats: tuple[()] = ..., **arguments: Unpack[_Arguments]
) -> Tensor: ...


@overload
def gated_norm(
    x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, *, stats: Sequence[NormStatistic],
    **arguments: Unpack[_Arguments],
) -> tuple[Tensor, dict[str, Tensor]]: ...  # fmt: skip


def gated_norm(
    x: Tensor,
    weight: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    *,
    pre_affine: Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    stats: Sequence[NormStatistic] = (),
    backend: NormBackend = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """RMSNorm, optionally after PreAffine, with the low-rank gate of GatedNorm (arXiv 2601.22966).

    See `sink_kernels.gated_norm_reference` for the formulas.

    Args:
        x: [..., D].
        weight: RMSNorm's gain [D].
        w_down: [r, D], the weight of nn.Linear(D, r).
        w_up: [D, r], the weight of nn.Linear(r, D); [1, r] for one gate per token (reference only).
        pre_affine: lambda_1 of PreAffine [D].
        eps: added to the mean square.
        offset: added to the gate's pre-activation; logit(g) starts the gate at g.
        stats: per channel over all rows, float32 and not differentiable: "absmax" and "fourth_moment" (mean of y^4).
        backend: "auto" uses "triton" on a GPU if supported (rank up to 128, channel-wise gate), else "reference".

    Returns:
        y like x, or (y, {name: [D]}) if `stats` is not empty. Parameters may have a different dtype than x.
    """
    _validate_tensors(x, weight, w_down, w_up, pre_affine)
    _validate_options(eps, offset, stats, backend)
    if backend == "triton" or (backend == "auto" and runs_kernels(x.device)):
        reason = gated_norm_op.unsupported(x, w_down, w_up)
        if reason is None:
            y, taken = gated_norm_op.gated_norm(x, weight, w_down, w_up, pre_affine, eps, offset, stats)
            return (y, taken) if stats else y
        if backend == "triton":
            raise ValueError(reason)
    y, taken = gated_norm_reference.gated_norm(x, weight, w_down, w_up, pre_affine, eps, offset, stats)
    return (y, taken) if stats else y


def _validate_tensors(x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None) -> None:
    width = x.shape[-1] if x.dim() else 0
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: gated_norm takes [..., D] with at least one row; reshape x")
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"x is {x.dtype}: supported are {names}; cast x")
    for name, vector in (("weight", weight), ("pre_affine", pre_affine)):
        if vector is not None and vector.shape != (width,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}: it must be [D] = ({width},); a gain per channel")
    if w_down.dim() != 2 or w_down.shape[1] != width or w_down.shape[0] < 1:
        raise ValueError(
            f"w_down has shape {tuple(w_down.shape)}: it must be [r, D] with D = {width}, as nn.Linear({width}, r)"
        )
    rank = w_down.shape[0]
    if w_up.shape != (width, rank) and w_up.shape != (1, rank):
        raise ValueError(
            f"w_up has shape {tuple(w_up.shape)}: it must be [D, r] = ({width}, {rank}), as "
            f"nn.Linear({rank}, {width}), or (1, {rank}) for one gate per token"
        )
    for name, tensor in (("weight", weight), ("w_down", w_down), ("w_up", w_up), ("pre_affine", pre_affine)):
        if tensor is not None and (not tensor.is_floating_point() or tensor.device != x.device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}: it must be floating point on {x.device}; cast or move it"
            )


def _validate_options(eps: float, offset: float, stats: Sequence[str], backend: str) -> None:
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps={eps}: it must be finite and not negative; 1e-6 is usual")
    if not -math.inf < offset < math.inf:
        raise ValueError(f"offset={offset}: it must be finite; 0 starts the gate at one half")
    for name in stats:
        if name not in get_args(NormStatistic):
            raise ValueError(f"unknown statistic {name!r}: choose among {', '.join(get_args(NormStatistic))}")
    if backend not in get_args(NormBackend):
        raise ValueError(f"unknown backend {backend!r}: choose among {', '.join(get_args(NormBackend))}")
