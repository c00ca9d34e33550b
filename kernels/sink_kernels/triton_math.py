# mypy: allow-untyped-defs, allow-incomplete-defs
"""Pieces shared by the Triton kernels.

Naming: b_ a block's values, p_ a pointer, o_ offsets, s_ a stride, m_ a mask; capitals are compile-time constants.
Half-precision blocks are converted to float32 right after loading: only the operands of tl.dot and stores are half.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# In place of minus infinity: finite, so that a row without an allowed key in its first blocks gives no inf - inf; and a
# power of two, so that a fused multiply-add of it with the scale is exact and such a row's exp2(0) stays 1.
FAR_BELOW = tl.constexpr(-(2.0**100))

SOFTMAX = tl.constexpr(0)
LEARNABLE_SINK = tl.constexpr(1)
OFF_BY_ONE = tl.constexpr(2)
SIGMOID = tl.constexpr(3)

NO_GATE = tl.constexpr(0)
HEAD_GATE = tl.constexpr(1)
ELEMENT_GATE = tl.constexpr(2)


@triton.jit
def sigmoid2(x):
    """sigmoid(x / log2(e)), of a logit in base 2, with a relative error of 2^-21.

    Not tanh.approx.f32, whose error is 2^-11 near -1, where the resulting weight or gate is nearly 0. The square of
    rsqrt is a reciprocal in two instructions; a division takes five.
    """
    root = tl.rsqrt(1.0 + tl.exp2(-x))
    return root * root


@triton.jit
def sigmoid(x):
    return sigmoid2(x * LOG2E)


@triton.jit
def tanh(x):
    return 1.0 - 2.0 * sigmoid2(x * (-2.0 * LOG2E))


@triton.jit
def load_rows(p, first, o_r, o_d, s_r, limit, D: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr):
    """Rows first + o_r of a matrix with D contiguous columns: [BR, BD], zero outside it.

    The offset of the first row is int64, that inside the block int32.
    """
    p_block = p + tl.cast(first, tl.int64) * s_r + (o_r[:, None] * s_r + o_d[None, :])
    if MASKED:
        if D == BD:
            return tl.load(p_block, mask=(first + o_r)[:, None] < limit, other=0.0)
        return tl.load(p_block, mask=((first + o_r)[:, None] < limit) & (o_d[None, :] < D), other=0.0)
    if D == BD:
        return tl.load(p_block)
    return tl.load(p_block, mask=o_d[None, :] < D, other=0.0)


@triton.jit
def store_rows(p, first, o_r, o_d, s_r, limit, b_x, D: tl.constexpr, BD: tl.constexpr):
    """Store [BR, BD] as rows first + o_r of a matrix with D contiguous columns, those outside left out."""
    p_block = p + tl.cast(first, tl.int64) * s_r + (o_r[:, None] * s_r + o_d[None, :])
    m = (first + o_r)[:, None] < limit
    if D != BD:
        m = m & (o_d[None, :] < D)
    tl.store(p_block, b_x.to(p.dtype.element_ty), mask=m)


@triton.jit
def visible(o_query, o_key, T, window, WINDOW: tl.constexpr):
    """Whether a query sees a key; the two offsets broadcast against each other."""
    m = (o_query >= o_key) & (o_key < T) & (o_query < T)
    if WINDOW:
        m = m & (o_query - o_key < window)
    return m
