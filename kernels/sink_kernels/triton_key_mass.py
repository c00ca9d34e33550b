# mypy: allow-untyped-defs, allow-incomplete-defs
"""The mass each key receives, keys held fixed while the queries stream by: no values, no output, no atomics."""

from __future__ import annotations

import triton
import triton.language as tl

from sink_kernels.triton_math import LOG2E, SIGMOID, load_rows, sigmoid2, tanh, visible


@triton.jit
def _collect(
    b_mass, b_k, p_q, p_lse, start, stop, o_m, o_n, o_d, s_qt, T, squash, factor, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for m in range(start, stop, BM):
        b_q = load_rows(p_q, m, o_m, o_d, s_qt, T, D, BD, MASKED)  # [BM, BD]
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BN, BM]
        if CAP:
            b_s = tanh(b_s * squash)
        if MASKED:
            b_lse = tl.load(p_lse + m + o_m, mask=m + o_m < T, other=0.0) * LOG2E
        else:
            b_lse = tl.load(p_lse + m + o_m) * LOG2E
        if NORM == SIGMOID:
            b_p = sigmoid2(b_s * factor + bias) * tl.exp2(-b_lse)[None, :]
        else:
            b_p = tl.exp2(b_s * factor - b_lse[None, :])
        if MASKED:
            b_p = tl.where(visible(m + o_m[None, :], o_n[:, None], T, window, WINDOW), b_p, 0.0)
        b_mass += tl.sum(b_p, 1)
    return b_mass


@triton.jit
def key_mass_kernel(
    p_q, p_k, p_lse, p_mass, s_qb, s_qh, s_qt, s_kb, s_kh, s_kt, H, T, scale, softcap, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BN keys as one query head sees them."""
    blocks = tl.cdiv(T, BN)
    block = tl.program_id(0) % blocks
    bh = tl.program_id(0) // blocks
    b = tl.cast(bh // H, tl.int64)
    h = tl.cast(bh % H, tl.int64)
    first = block * BN
    o_r = tl.arange(0, BN)
    o_n = first + o_r
    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    b_k = load_rows(p_k + b * s_kb + (h // GROUP) * s_kh, first, o_r, o_d, s_kt, T, D, BD, True)  # [BN, BD]
    p_q += b * s_qb + h * s_qh
    row = tl.cast(bh, tl.int64) * T
    p_lse += row
    squash = scale
    factor = scale * LOG2E
    bias = bias * LOG2E
    if CAP:
        squash = scale / softcap
        factor = softcap * LOG2E
    start = first // BM * BM
    stop = T
    whole = T // BM * BM
    if WINDOW:
        stop = tl.minimum(T, first + BN - 1 + window)
        whole = tl.minimum(whole, (first + window) // BM * BM)
    below = tl.minimum(tl.cdiv(first + BN, BM) * BM, stop)
    whole = tl.maximum(whole, below)
    b_mass = tl.zeros([BN], tl.float32)
    b_mass = _collect(
        b_mass, b_k, p_q, p_lse, start, below, o_m, o_n, o_d, s_qt, T, squash, factor, bias, window,
        D, BD, BM, NORM, True, WINDOW, CAP, PRECISION,
    )  # fmt: skip
    b_mass = _collect(
        b_mass, b_k, p_q, p_lse, below, whole, o_m, o_n, o_d, s_qt, T, squash, factor, bias, window,
        D, BD, BM, NORM, False, WINDOW, CAP, PRECISION,
    )  # fmt: skip
    b_mass = _collect(
        b_mass, b_k, p_q, p_lse, whole, stop, o_m, o_n, o_d, s_qt, T, squash, factor, bias, window,
        D, BD, BM, NORM, True, WINDOW, CAP, PRECISION,
    )  # fmt: skip
    tl.store(p_mass + row + o_n, b_mass, mask=o_n < T)
