"""Launching the Triton attention kernels: strides, tiles and the memory of the results."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from sink_kernels.launching import is_nvidia, on_device
from sink_kernels.options import Options
from sink_kernels.tiles import Tile, capability_of, rows_a_block, tile_for
from sink_kernels.triton_backward import (
    attention_backward_keys_kernel,
    attention_backward_queries_kernel,
    attention_backward_rows_kernel,
)
from sink_kernels.triton_forward import attention_forward_kernel
from sink_kernels.triton_key_mass import key_mass_kernel

_NORMALIZERS = {"softmax": 0, "learnable_sink": 1, "off_by_one": 2, "sigmoid": 3}


def forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, options: Options,
    first_key: bool, row_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(out [B, H, T, D], lse, first_key_mass, entropy, max_logit); statistics not requested are empty."""
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    batch, heads, tokens = q.shape[:3]
    out = empty_output(q)
    lse = _rows(q)
    first, entropy, max_logit = _rows(q, first_key), _rows(q, row_stats), _rows(q, row_stats)
    gates = q if gate is None else _dense_rows(gate)
    sinks = lse if sink is None else sink.contiguous()
    tile = _tile("forward", q)
    constants, gate_kind = _constants(q, k, options), _gate_kind(gate)
    with on_device(q.device):
        if tile.schedule == "specialized":
            from sink_kernels import gluon_forward

            if gluon_forward.unsupported(q, k, v, constants, first_key or row_stats) is None:
                gluon_forward.launch(q, k, v, sinks, gates, out, lse, options.scale, constants, gate_kind, tile)
                return out, lse, first, entropy, max_logit
        attention_forward_kernel[(triton.cdiv(tokens, tile.rows) * batch * heads,)](
            q, k, v, sinks, gates, out, lse, first, entropy, max_logit,
            *_strides(q, k, v, gates, out), heads, tokens, *_scalars(options),
            GATE=gate_kind, FIRST=first_key, ROWS=row_stats, AHEAD=tile.schedule == "ahead",
            **constants, **_of_tile(tile),
        )  # fmt: skip
    return out, lse, first, entropy, max_logit


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, gate: Tensor | None, out: Tensor, lse: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv, dsink, dgate); the last two are empty without a sink or gate."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    dgate = q.new_empty(0) if gate is None else torch.empty_like(gate)
    grad, q, k, v = _dense_rows(grad), _dense_rows(q), _dense_rows(k), _dense_rows(v)
    out, lse = _dense_rows(out), lse.contiguous()
    gates = q if gate is None else _dense_rows(gate)
    sinks = lse if sink is None else sink.contiguous()
    own_dq, own_dk, own_dv = (_row_strided(x) for x in (dq, dk, dv))
    own_dgate = q if gate is None else _row_strided(dgate)
    batch, heads, tokens, _ = q.shape
    kv_heads = k.shape[1]
    constants = _constants(q, k, options)
    rows = rows_a_block(constants["BD"])
    blocks = triton.cdiv(tokens, rows)
    delta = _rows(q)
    partial = q.new_empty((batch, heads, blocks), dtype=torch.float32)
    do = grad if gate is None else empty_output(q)
    shared = (q, k, v, do, lse, delta)
    strides, scalars = _strides(q, k, v, do), (heads, tokens, *_scalars(options))
    with on_device(q.device):
        attention_backward_rows_kernel[(blocks * batch * heads,)](
            grad, out, gates, sinks, lse, do, own_dgate, delta, partial,
            *_strides(grad, out, gates, do, own_dgate), heads, tokens,
            D=constants["D"], BD=constants["BD"], BM=rows, GATE=_gate_kind(gate), NORM=constants["NORM"],
            num_warps=4,
        )  # fmt: skip
        tile = _tile("backward_keys", q)
        attention_backward_keys_kernel[(triton.cdiv(tokens, tile.columns) * batch * kv_heads,)](
            *shared, own_dk, own_dv, *strides, *_strides(own_dk, own_dv), *scalars, **constants, **_of_tile(tile)
        )
        tile = _tile("backward_queries", q)
        attention_backward_queries_kernel[(triton.cdiv(tokens, tile.rows) * batch * heads,)](
            *shared, own_dq, *strides, *_strides(own_dq), *scalars, **constants, **_of_tile(tile)
        )
    for result, written in zip((dq, dk, dv, dgate), (own_dq, own_dk, own_dv, own_dgate), strict=True):
        if written is not result and result.numel():
            result.copy_(written)
    dsink = q.new_empty(0) if sink is None else partial.sum((0, 2)).to(sink.dtype)
    return dq, dk, dv, dsink, dgate


def key_mass(q: Tensor, k: Tensor, lse: Tensor, options: Options) -> Tensor:
    """[B, H, T] float32."""
    q, k, lse = _dense_rows(q), _dense_rows(k), lse.float().contiguous()
    batch, heads, tokens, _ = q.shape
    mass = _rows(q)
    tile = _tile("key_mass", q)
    with on_device(q.device):
        key_mass_kernel[(triton.cdiv(tokens, tile.columns) * batch * heads,)](
            q, k, lse, mass, *_strides(q, k), heads, tokens, *_scalars(options),
            **_constants(q, k, options), **_of_tile(tile),
        )  # fmt: skip
    return mass


def empty_output(q: Tensor) -> Tensor:
    """[B, H, T, D] stored as [B, T, H, D]: merging the heads afterward needs no copy."""
    batch, heads, tokens, head_dim = q.shape
    return q.new_empty((batch, tokens, heads, head_dim)).transpose(1, 2)


def _rows(q: Tensor, wanted: bool = True) -> Tensor:
    return q.new_empty(q.shape[:3] if wanted else 0, dtype=torch.float32)


def _dense_rows(x: Tensor) -> Tensor:
    """`x` with a last dimension of stride 1, or of any stride where it is [B, H, T]."""
    return x if x.dim() == 3 or x.stride(-1) == 1 else x.contiguous()


def _row_strided(x: Tensor) -> Tensor:
    """`x`, or a tensor like it that a kernel can write row by row."""
    return x if x.dim() == 3 or x.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def _gate_kind(gate: Tensor | None) -> int:
    return 0 if gate is None else gate.dim() - 2


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """The first three strides of each."""
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _tile(kernel: str, q: Tensor) -> Tile:
    return tile_for(kernel, _padded(q.shape[3]), q.dtype, capability_of(q.device))


def _of_tile(tile: Tile) -> dict[str, int]:
    return {"BM": tile.rows, "BN": tile.columns, "num_warps": tile.warps, "num_stages": tile.stages}


def _padded(head_dim: int) -> int:
    """tl.dot requires powers of two, at least 16."""
    return max(16, triton.next_power_of_2(head_dim))


def _scalars(options: Options) -> tuple[float, float, float, int]:
    return options.scale, options.softcap or 1.0, options.bias or 0.0, options.window or 0


def _constants(q: Tensor, k: Tensor, options: Options) -> dict[str, Any]:
    nvidia = is_nvidia(q.device)
    return {
        "D": q.shape[3],
        "BD": _padded(q.shape[3]),
        "GROUP": q.shape[1] // k.shape[1],
        "NORM": _NORMALIZERS[str(options.normalizer)],
        "WINDOW": options.window is not None,
        "CAP": options.softcap is not None,
        # One TF32 pass would silently lose 13 bits.
        "PRECISION": "tf32x3" if nvidia and q.dtype == torch.float32 else "ieee",
    }
