# mypy: allow-untyped-defs, allow-incomplete-defs
"""GatedNorm fused: the forward reads x from memory once and writes y once; the backward is a pair of kernels.

With a = pre_affine * weight, both per channel, and xr = x / rms, per row:

    n = a xr      h = (x (a W_down)^T) / rms      s = sigmoid(W_up silu(h) + offset)      y = n s

Forward, one program for BM rows: 1 / rms factors out of h, so that one sweep over the channels gathers both the sum of
squares and the projection; a second sweep, its x still in the cache, gates and stores.

Backward, with t = dy s, dh = ((t n (1 - s)) W_up) silu'(h) and dn = t + dh W_down:

    dx = a dn / rms - pre_affine^2 xr c / (D rms^2)      c = sum_d dn a x = sum_d t a x + (dh . h) rms
    dweight = pre_affine e                               e = sum_i dn xr
    dpre_affine = weight e - pre_affine f                f = sum_i x xr c / (D rms^2)
    dW_down = a sum_i dh xr                              dW_up = a sum_i (t xr (1 - s)) silu(h)

The right form of c needs no second sweep: the rows kernel gathers t n (1 - s) W_up and c in one. The channels kernel
then gives each program a stripe of channels and a part of the rows; it writes dx and keeps the sums over its rows in
registers. The parts are summed in torch, without atomics. Factors that are constant in a row or a channel stay out of
the blocks, because at rank 16 instruction issue takes about as long as memory access.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sink_kernels.launching import is_nvidia, on_device
from sink_kernels.tiles import Tile, norm_tile_for
from sink_kernels.triton_math import sigmoid

_SHARES_AN_SM = 4


@triton.jit
def _load(p, rows, columns, s_r, M, D, EVEN: tl.constexpr):
    """[BM, BK] in float32, zero outside the matrix."""
    p_block = p + tl.cast(rows, tl.int64)[:, None] * s_r + columns[None, :]
    if EVEN:
        return tl.load(p_block, mask=(rows < M)[:, None], other=0.0).to(tl.float32)
    return tl.load(p_block, mask=(rows < M)[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _load_channel(p, columns, D, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(p + columns).to(tl.float32)
    return tl.load(p + columns, mask=columns < D, other=0.0).to(tl.float32)


@triton.jit
def _load_down(p, columns, o_r, D, R: tl.constexpr):
    """W_down [R, D] as [BK, BR]."""
    p_block = p + o_r[None, :] * D + columns[:, None]
    return tl.load(p_block, mask=(o_r < R)[None, :] & (columns < D)[:, None], other=0.0).to(tl.float32)


@triton.jit
def _load_up(p, columns, o_r, D, R: tl.constexpr):
    """W_up [D, R] as [BK, BR]."""
    p_block = p + columns[:, None] * R + o_r[None, :]
    return tl.load(p_block, mask=(o_r < R)[None, :] & (columns < D)[:, None], other=0.0).to(tl.float32)


@triton.jit
def _dot(a, b, acc, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b + acc of float32 blocks, their products in bfloat16 if HALF."""
    if HALF:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _gain(p_weight, p_pre, columns, D, PRE: tl.constexpr, EVEN: tl.constexpr):
    """a = pre_affine * weight of a block of channels."""
    b_gain = _load_channel(p_weight, columns, D, EVEN)
    if PRE:
        b_gain = b_gain * _load_channel(p_pre, columns, D, EVEN)
    return b_gain


@triton.jit
def _open(b_z, b_up, offset, BM: tl.constexpr, BK: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """(s, 1 - s) of the gate s = sigmoid(z up^T + offset), [BM, BK]."""
    b_g = tl.full([BM, BK], 1.0, tl.float32) * offset
    b_s = sigmoid(_dot(b_z, tl.trans(b_up), b_g, HALF, PRECISION))
    return b_s, 1.0 - b_s


@triton.jit
def gated_norm_forward_kernel(
    p_x, p_weight, p_pre, p_down, p_up, p_y, p_rstd, p_h, p_absmax, p_fourth,
    s_x, s_y, M, D, eps, offset,
    R: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, PRE: tl.constexpr,
    STATS: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BM rows."""
    block = tl.program_id(0)
    rows = block * BM + tl.arange(0, BM)
    m_row = rows < M
    o_k = tl.arange(0, BK)
    o_r = tl.arange(0, BR)
    b_squares = tl.zeros([BM], tl.float32)
    b_h = tl.zeros([BM, BR], tl.float32)
    for k in range(0, D, BK):
        b_x = _load(p_x, rows, k + o_k, s_x, M, D, EVEN)
        b_down = _load_down(p_down, k + o_k, o_r, D, R) * _gain(p_weight, p_pre, k + o_k, D, PRE, EVEN)[:, None]
        b_h = _dot(b_x, b_down, b_h, HALF, PRECISION)
        if PRE:
            b_x = b_x * _load_channel(p_pre, k + o_k, D, EVEN)[None, :]
        b_squares += tl.sum(b_x * b_x, 1)
    b_rstd = tl.rsqrt(b_squares / D + eps)
    b_h = b_h * b_rstd[:, None]
    tl.store(p_rstd + rows, b_rstd, mask=m_row)
    p_block = p_h + tl.cast(rows, tl.int64)[:, None] * R + o_r[None, :]
    tl.store(p_block, b_h, mask=m_row[:, None] & (o_r < R)[None, :])
    b_z = b_h * sigmoid(b_h)
    for k in range(0, D, BK):
        columns = k + o_k
        b_s, _ = _open(b_z, _load_up(p_up, columns, o_r, D, R), offset, BM, BK, HALF, PRECISION)
        b_xr = _load(p_x, rows, columns, s_x, M, D, EVEN) * b_rstd[:, None]
        b_y = b_xr * _gain(p_weight, p_pre, columns, D, PRE, EVEN)[None, :] * b_s
        p_out = p_y + tl.cast(rows, tl.int64)[:, None] * s_y + columns[None, :]
        tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m_row[:, None] & (columns < D)[None, :])
        if STATS:
            p_part = tl.cast(block, tl.int64) * D + columns
            b_y = tl.where(m_row[:, None], b_y, 0.0)
            b_square = b_y * b_y
            tl.store(p_absmax + p_part, tl.max(tl.abs(b_y), 0), mask=columns < D)
            tl.store(p_fourth + p_part, tl.sum(b_square * b_square, 0), mask=columns < D)


@triton.jit
def gated_norm_backward_rows_kernel(
    p_dy, p_x, p_weight, p_pre, p_up, p_rstd, p_h, p_dh, p_c,
    s_dy, s_x, M, D, offset,
    R: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, PRE: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dh and c / (D rms^2) of BM rows."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    m_row = rows < M
    o_k = tl.arange(0, BK)
    o_r = tl.arange(0, BR)
    m_h = m_row[:, None] & (o_r < R)[None, :]
    p_block = tl.cast(rows, tl.int64)[:, None] * R + o_r[None, :]
    b_h = tl.load(p_h + p_block, mask=m_h, other=0.0)
    b_rstd = tl.load(p_rstd + rows, mask=m_row, other=1.0)
    b_open = sigmoid(b_h)
    b_z = b_h * b_open
    b_dz = tl.zeros([BM, BR], tl.float32)
    b_c = tl.zeros([BM], tl.float32)
    for k in range(0, D, BK):
        columns = k + o_k
        b_gain = _gain(p_weight, p_pre, columns, D, PRE, EVEN)
        b_up = _load_up(p_up, columns, o_r, D, R)
        b_s, b_closed = _open(b_z, b_up, offset, BM, BK, HALF, PRECISION)
        b_t = _load(p_dy, rows, columns, s_dy, M, D, EVEN) * b_s
        b_t = b_t * (_load(p_x, rows, columns, s_x, M, D, EVEN) * b_rstd[:, None])
        b_c += tl.sum(b_t * b_gain[None, :], 1)
        b_dz = _dot(b_t * b_closed, b_up * b_gain[:, None], b_dz, HALF, PRECISION)
    b_dh = b_dz * b_open * (1.0 + b_h * (1.0 - b_open))
    b_c = (b_c + tl.sum(b_dh * b_h, 1)) * b_rstd / D
    tl.store(p_dh + p_block, b_dh, mask=m_h)
    tl.store(p_c + rows, b_c, mask=m_row)


@triton.jit
def gated_norm_backward_channels_kernel(
    p_dy, p_x, p_weight, p_pre, p_down, p_up, p_rstd, p_h, p_dh, p_c, p_dx, p_dweight, p_dpre, p_ddown, p_dup,
    s_dy, s_x, s_dx, M, D, share, offset,
    R: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, PRE: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BK channels of `share` rows; the stripes of one share run next to each other."""
    stripes = tl.cdiv(D, BK)
    columns = tl.program_id(0) % stripes * BK + tl.arange(0, BK)
    part = tl.program_id(0) // stripes
    o_r = tl.arange(0, BR)
    b_weight = _load_channel(p_weight, columns, D, EVEN)
    b_pre = tl.full([BK], 1.0, tl.float32)
    if PRE:
        b_pre = _load_channel(p_pre, columns, D, EVEN)
    b_gain = b_weight * b_pre
    b_down = _load_down(p_down, columns, o_r, D, R)
    b_up = _load_up(p_up, columns, o_r, D, R)
    b_along = tl.zeros([BK], tl.float32)
    b_across = tl.zeros([BK], tl.float32)
    b_ddown = tl.zeros([BK, BR], tl.float32)
    b_dup = tl.zeros([BK, BR], tl.float32)
    first = part * share
    for m in range(first, tl.minimum(first + share, M), BM):
        rows = m + tl.arange(0, BM)
        m_row = rows < M
        m_h = m_row[:, None] & (o_r < R)[None, :]
        p_block = tl.cast(rows, tl.int64)[:, None] * R + o_r[None, :]
        b_h = tl.load(p_h + p_block, mask=m_h, other=0.0)
        b_dh = tl.load(p_dh + p_block, mask=m_h, other=0.0)
        b_rstd = tl.load(p_rstd + rows, mask=m_row, other=0.0)
        b_c = tl.load(p_c + rows, mask=m_row, other=0.0)
        b_z = b_h * sigmoid(b_h)
        b_s, b_closed = _open(b_z, b_up, offset, BM, BK, HALF, PRECISION)
        b_t = _load(p_dy, rows, columns, s_dy, M, D, EVEN) * b_s
        b_x = _load(p_x, rows, columns, s_x, M, D, EVEN)
        b_xr = b_x * b_rstd[:, None]
        b_dup = _dot(tl.trans(b_t * b_xr * b_closed), b_z, b_dup, HALF, PRECISION)
        b_ddown = _dot(tl.trans(b_xr), b_dh, b_ddown, HALF, PRECISION)
        b_dn = _dot(b_dh, tl.trans(b_down), b_t, HALF, PRECISION)
        b_along += tl.sum(b_dn * b_xr, 0)
        b_lost = b_xr * b_c[:, None]
        b_dx = b_dn * b_rstd[:, None] * b_gain[None, :]
        if PRE:
            b_across += tl.sum(b_lost * b_x, 0)
            b_dx -= b_lost * (b_pre * b_pre)[None, :]
        else:
            b_dx -= b_lost
        p_row = p_dx + tl.cast(rows, tl.int64)[:, None] * s_dx + columns[None, :]
        tl.store(p_row, b_dx.to(p_dx.dtype.element_ty), mask=m_row[:, None] & (columns < D)[None, :])
    offset_d = tl.cast(part, tl.int64) * D + columns
    tl.store(p_dweight + offset_d, b_along * b_pre, mask=columns < D)
    if PRE:
        tl.store(p_dpre + offset_d, b_along * b_weight - b_across * b_pre, mask=columns < D)
    m = (columns < D)[:, None] & (o_r < R)[None, :]
    tl.store(p_ddown + offset_d[:, None] * R + o_r[None, :], b_ddown * b_gain[:, None], mask=m)
    tl.store(p_dup + offset_d[:, None] * R + o_r[None, :], b_dup * b_gain[:, None], mask=m)


def forward(
    x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None,
    eps: float, offset: float, stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y [M, D], 1 / rms [M], h [M, R], absmax [D], fourth moment [D]) of x [M, D]; statistics may be empty."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    rows, width = x.shape
    rank = w_down.shape[0]
    tile = norm_tile_for("forward", rank)
    blocks = triton.cdiv(rows, tile.rows)
    y = x.new_empty((rows, width))
    rstd = x.new_empty(rows, dtype=torch.float32)
    h = x.new_empty((rows, rank), dtype=torch.float32)
    absmax, fourth = (x.new_empty((blocks, width) if stats else (0, 0), dtype=torch.float32) for _ in range(2))
    pre = weight if pre_affine is None else pre_affine.contiguous()
    read = (x, weight.contiguous(), pre, w_down.contiguous(), w_up.contiguous())
    scalars = (x.stride(0), y.stride(0), rows, width, eps, offset)
    with on_device(x.device):
        gated_norm_forward_kernel[(blocks,)](
            *read, y, rstd, h, absmax, fourth, *scalars, STATS=stats, **_constants(x, rank, tile, pre_affine)
        )
    if stats:
        return y, rstd, h, absmax.amax(0), fourth.sum(0) / rows
    return y, rstd, h, absmax.view(-1), fourth.view(-1)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor, pre_affine: Tensor | None,
    rstd: Tensor, h: Tensor, offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dweight, dw_down, dw_up, dpre_affine); the last is empty without PreAffine."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    rows, width = x.shape
    rank = w_down.shape[0]
    tile = norm_tile_for("backward_channels", rank)
    stripes, blocks = triton.cdiv(width, tile.columns), triton.cdiv(rows, tile.rows)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.device.type == "cuda" else 1
    shares = max(1, min(blocks, _SHARES_AN_SM * processors // stripes))
    share = triton.cdiv(blocks, shares) * tile.rows
    shares = triton.cdiv(rows, share)

    weight, w_down, w_up, rstd, h = (tensor.contiguous() for tensor in (weight, w_down, w_up, rstd, h))
    pre = weight if pre_affine is None else pre_affine.contiguous()
    dx = x.new_empty((rows, width))
    dh = torch.empty_like(h)
    c = torch.empty_like(rstd)
    dweight, dpre = (x.new_empty((shares, width), dtype=torch.float32) for _ in range(2))
    ddown, dup = (x.new_empty((shares, width, rank), dtype=torch.float32) for _ in range(2))
    strides, lengths = (dy.stride(0), x.stride(0)), (rows, width)
    with on_device(x.device):
        rows_tile = norm_tile_for("backward_rows", rank)
        gated_norm_backward_rows_kernel[(triton.cdiv(rows, rows_tile.rows),)](
            dy, x, weight, pre, w_up, rstd, h, dh, c, *strides, *lengths, offset,
            **_constants(x, rank, rows_tile, pre_affine),
        )  # fmt: skip
        gated_norm_backward_channels_kernel[(stripes * shares,)](
            dy, x, weight, pre, w_down, w_up, rstd, h, dh, c, dx, dweight, dpre, ddown, dup,
            *strides, dx.stride(0), *lengths, share, offset, **_constants(x, rank, tile, pre_affine),
        )  # fmt: skip
    return (
        dx,
        dweight.sum(0).to(weight.dtype),
        ddown.sum(0).T.to(w_down.dtype).contiguous(),
        dup.sum(0).to(w_up.dtype),
        x.new_empty(0) if pre_affine is None else dpre.sum(0).to(pre_affine.dtype),
    )


def _constants(x: Tensor, rank: int, tile: Tile, pre_affine: Tensor | None) -> dict[str, int | bool | str]:
    nvidia = is_nvidia(x.device)
    # A massive activation times its gain would overflow float16; TF32 has its mantissa and float32's range.
    precision = {torch.float32: "tf32x3", torch.float16: "tf32"}.get(x.dtype, "ieee") if nvidia else "ieee"
    return {
        "R": rank,
        "BR": max(16, triton.next_power_of_2(rank)),
        "BM": tile.rows,
        "BK": tile.columns,
        "EVEN": x.shape[1] % tile.columns == 0,
        "PRE": pre_affine is not None,
        "HALF": x.dtype == torch.bfloat16,
        "PRECISION": precision,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
