# mypy: allow-untyped-defs, allow-incomplete-defs
"""The fused backward, in three kernels without atomics: rows first, then keys and values, then queries.

Only the gated output y = g * o is saved, g = sigmoid(gate). It is sufficient:

    delta_i = sum_d dO_id o_id = sum_d dY_id y_id        dO = dY * g
    dgate   = dY * y * (1 - g)  (element-wise)           dgate_i = delta_i (1 - g_i)  (head-wise)
    dsink_h = -sum_bi exp(sink_h - lse_bhi) delta_bhi
    dS_ij   = P_ij (dO_i . v_j - delta_i)                sigmoid attention: P_ij (1 - P_ij) dO_i . v_j

with P_ij = exp(s_ij - lse_i) and an lse that includes the sink, so only dsink depends on the sink explicitly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sink_kernels.triton_math import (
    ELEMENT_GATE,
    HEAD_GATE,
    LEARNABLE_SINK,
    LOG2E,
    SIGMOID,
    load_rows,
    sigmoid,
    sigmoid2,
    store_rows,
    tanh,
    visible,
)


@triton.jit
def attention_backward_rows_kernel(
    p_dy, p_y, p_gate, p_sink, p_lse, p_do, p_dgate, p_delta, p_dsink,
    s_yb, s_yh, s_yt, s_ob, s_oh, s_ot, s_gb, s_gh, s_gt, s_db, s_dh, s_dt, s_eb, s_eh, s_et,
    H, T,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Per query: delta, dO and dgate; per block: the sink's gradient as a partial sum [B * H, blocks]."""
    blocks = tl.cdiv(T, BM)
    block = tl.program_id(0) % blocks
    bh = tl.program_id(0) // blocks
    b = tl.cast(bh // H, tl.int64)
    h = tl.cast(bh % H, tl.int64)
    first = block * BM
    o_r = tl.arange(0, BM)
    o_m = first + o_r
    o_d = tl.arange(0, BD)
    m_row = o_m < T
    b_dy = load_rows(p_dy + b * s_yb + h * s_yh, first, o_r, o_d, s_yt, T, D, BD, True).to(tl.float32)
    b_y = load_rows(p_y + b * s_ob + h * s_oh, first, o_r, o_d, s_ot, T, D, BD, True).to(tl.float32)
    b_delta = tl.sum(b_dy * b_y, 1)
    p_gate += b * s_gb + h * s_gh
    p_dgate += b * s_eb + h * s_eh
    p_do += b * s_db + h * s_dh
    if GATE == ELEMENT_GATE:
        b_g = sigmoid(load_rows(p_gate, first, o_r, o_d, s_gt, T, D, BD, True).to(tl.float32))
        store_rows(p_dgate, first, o_r, o_d, s_et, T, b_dy * b_y * (1.0 - b_g), D, BD)
        store_rows(p_do, first, o_r, o_d, s_dt, T, b_dy * b_g, D, BD)
    if GATE == HEAD_GATE:
        b_g = tl.load(p_gate + tl.cast(o_m, tl.int64) * s_gt, mask=m_row, other=0.0).to(tl.float32)
        b_g = sigmoid(b_g)
        p_e = p_dgate + tl.cast(o_m, tl.int64) * s_et
        tl.store(p_e, (b_delta * (1.0 - b_g)).to(p_dgate.dtype.element_ty), mask=m_row)
        store_rows(p_do, first, o_r, o_d, s_dt, T, b_dy * b_g[:, None], D, BD)
    row = tl.cast(bh, tl.int64) * T + o_m
    tl.store(p_delta + row, b_delta, mask=m_row)
    if NORM == LEARNABLE_SINK:
        sink = tl.load(p_sink + h).to(tl.float32)
        b_lse = tl.load(p_lse + row, mask=m_row, other=float("inf"))
        b_share = tl.where(m_row, tl.exp2((sink - b_lse) * LOG2E) * b_delta, 0.0)
        tl.store(p_dsink + tl.program_id(0), -tl.sum(b_share, 0))


@triton.jit
def _weights(b_s, b_lse, factor, bias, squash, NORM: tl.constexpr, CAP: tl.constexpr):
    """(P, the slope of the soft-cap) of raw logits; `b_lse` in base 2 and broadcast against them."""
    b_slope = 1.0
    if CAP:
        b_s = tanh(b_s * squash)
        b_slope = 1.0 - b_s * b_s
    if NORM == SIGMOID:
        return sigmoid2(b_s * factor + bias), b_slope
    return tl.exp2(b_s * factor - b_lse), b_slope


@triton.jit
def _grad_keys_values(
    b_dk, b_dv, b_k, b_v, p_q, p_do, p_lse, p_delta, start, stop, o_m, o_n, o_d, s_qt, s_dt,
    T, squash, factor, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the queries in [start, stop) give to the gradients of one block of keys and values."""
    for m in range(start, stop, BM):
        b_q = load_rows(p_q, m, o_m, o_d, s_qt, T, D, BD, MASKED)  # [BM, BD]
        b_do = load_rows(p_do, m, o_m, o_d, s_dt, T, D, BD, MASKED)  # [BM, BD]
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BN, BM]
        b_lse = tl.zeros([BM], tl.float32)
        b_delta = tl.zeros([BM], tl.float32)
        if NORM != SIGMOID:
            if MASKED:
                b_lse = tl.load(p_lse + m + o_m, mask=m + o_m < T, other=0.0) * LOG2E
                b_delta = tl.load(p_delta + m + o_m, mask=m + o_m < T, other=0.0)
            else:
                b_lse = tl.load(p_lse + m + o_m) * LOG2E
                b_delta = tl.load(p_delta + m + o_m)
        b_p, b_slope = _weights(b_s, b_lse[None, :], factor, bias, squash, NORM, CAP)
        if MASKED:
            b_p = tl.where(visible(m + o_m[None, :], o_n[:, None], T, window, WINDOW), b_p, 0.0)
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)  # [BN, BM]
        if NORM == SIGMOID:
            b_ds = b_p * (1.0 - b_p) * b_dp
        else:
            b_ds = b_p * (b_dp - b_delta[None, :])
        if CAP:
            b_ds = b_ds * b_slope
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit
def attention_backward_keys_kernel(
    p_q, p_k, p_v, p_do, p_lse, p_delta, p_dk, p_dv,
    s_qb, s_qh, s_qt, s_kb, s_kh, s_kt, s_vb, s_vh, s_vt, s_db, s_dh, s_dt, s_eb, s_eh, s_et, s_fb, s_fh, s_ft,
    H, T, scale, softcap, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BN keys of one key/value head, over all queries of the heads it serves."""
    blocks = tl.cdiv(T, BN)
    block = tl.program_id(0) % blocks
    bh = tl.program_id(0) // blocks
    heads = H // GROUP
    b = tl.cast(bh // heads, tl.int64)
    kv = tl.cast(bh % heads, tl.int64)
    first = block * BN
    o_r = tl.arange(0, BN)
    o_n = first + o_r
    o_m = tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    b_k = load_rows(p_k + b * s_kb + kv * s_kh, first, o_r, o_d, s_kt, T, D, BD, True)  # [BN, BD]
    b_v = load_rows(p_v + b * s_vb + kv * s_vh, first, o_r, o_d, s_vt, T, D, BD, True)  # [BN, BD]
    squash = scale
    factor = scale * LOG2E
    bias = bias * LOG2E
    if CAP:
        squash = scale / softcap
        factor = softcap * LOG2E
    b_dk = tl.zeros([BN, BD], tl.float32)
    b_dv = tl.zeros([BN, BD], tl.float32)

    start = first // BM * BM
    stop = T
    whole = T // BM * BM
    if WINDOW:
        stop = tl.minimum(T, first + BN - 1 + window)
        whole = tl.minimum(whole, (first + window) // BM * BM)
    below = tl.minimum(tl.cdiv(first + BN, BM) * BM, stop)
    whole = tl.maximum(whole, below)
    for g in range(GROUP):
        h = kv * GROUP + g
        p_qh = p_q + b * s_qb + h * s_qh
        p_doh = p_do + b * s_db + h * s_dh
        p_lseh = p_lse + (b * H + h) * T
        p_deltah = p_delta + (b * H + h) * T
        b_dk, b_dv = _grad_keys_values(
            b_dk, b_dv, b_k, b_v, p_qh, p_doh, p_lseh, p_deltah, start, below, o_m, o_n, o_d, s_qt, s_dt,
            T, squash, factor, bias, window, D, BD, BM, NORM, True, WINDOW, CAP, PRECISION,
        )  # fmt: skip
        b_dk, b_dv = _grad_keys_values(
            b_dk, b_dv, b_k, b_v, p_qh, p_doh, p_lseh, p_deltah, below, whole, o_m, o_n, o_d,
            s_qt, s_dt, T, squash, factor, bias, window, D, BD, BM, NORM, False, WINDOW, CAP, PRECISION,
        )  # fmt: skip
        b_dk, b_dv = _grad_keys_values(
            b_dk, b_dv, b_k, b_v, p_qh, p_doh, p_lseh, p_deltah, whole, stop, o_m, o_n, o_d, s_qt, s_dt,
            T, squash, factor, bias, window, D, BD, BM, NORM, True, WINDOW, CAP, PRECISION,
        )  # fmt: skip
    store_rows(p_dk + b * s_eb + kv * s_eh, first, o_r, o_d, s_et, T, b_dk * scale, D, BD)
    store_rows(p_dv + b * s_fb + kv * s_fh, first, o_r, o_d, s_ft, T, b_dv, D, BD)


@triton.jit
def _grad_queries(
    b_dq, b_q, b_do, b_lse, b_delta, p_k, p_v, start, stop, o_m, o_n, o_d, s_kt, s_vt,
    T, squash, factor, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, NORM: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the keys in [start, stop) give to the gradient of one block of queries."""
    for n in range(start, stop, BN):
        b_k = load_rows(p_k, n, o_n, o_d, s_kt, T, D, BD, MASKED)  # [BN, BD]
        b_v = load_rows(p_v, n, o_n, o_d, s_vt, T, D, BD, MASKED)  # [BN, BD]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        b_p, b_slope = _weights(b_s, b_lse[:, None], factor, bias, squash, NORM, CAP)
        if MASKED:
            b_p = tl.where(visible(o_m[:, None], n + o_n[None, :], T, window, WINDOW), b_p, 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)  # [BM, BN]
        if NORM == SIGMOID:
            b_ds = b_p * (1.0 - b_p) * b_dp
        else:
            b_ds = b_p * (b_dp - b_delta[:, None])
        if CAP:
            b_ds = b_ds * b_slope
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq


@triton.jit
def attention_backward_queries_kernel(
    p_q, p_k, p_v, p_do, p_lse, p_delta, p_dq,
    s_qb, s_qh, s_qt, s_kb, s_kh, s_kt, s_vb, s_vh, s_vt, s_db, s_dh, s_dt, s_eb, s_eh, s_et,
    H, T, scale, softcap, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BM queries of one head, over all keys they see. Grid as in the forward."""
    blocks = tl.cdiv(T, BM)
    block = blocks - 1 - tl.program_id(0) % blocks
    bh = tl.program_id(0) // blocks
    b = tl.cast(bh // H, tl.int64)
    h = tl.cast(bh % H, tl.int64)
    first = block * BM
    o_r = tl.arange(0, BM)
    o_m = first + o_r
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    m_row = o_m < T
    b_q = load_rows(p_q + b * s_qb + h * s_qh, first, o_r, o_d, s_qt, T, D, BD, True)  # [BM, BD]
    b_do = load_rows(p_do + b * s_db + h * s_dh, first, o_r, o_d, s_dt, T, D, BD, True)  # [BM, BD]
    p_k += b * s_kb + (h // GROUP) * s_kh
    p_v += b * s_vb + (h // GROUP) * s_vh
    row = tl.cast(bh, tl.int64) * T + o_m
    b_lse = tl.zeros([BM], tl.float32)
    b_delta = tl.zeros([BM], tl.float32)
    if NORM != SIGMOID:
        b_lse = tl.load(p_lse + row, mask=m_row, other=0.0) * LOG2E
        b_delta = tl.load(p_delta + row, mask=m_row, other=0.0)
    squash = scale
    factor = scale * LOG2E
    bias = bias * LOG2E
    if CAP:
        squash = scale / softcap
        factor = softcap * LOG2E
    b_dq = tl.zeros([BM, BD], tl.float32)

    stop = tl.minimum(first + BM, T)
    diagonal = first // BN * BN
    inside = 0
    if WINDOW:
        start = tl.maximum(first - window + 1, 0) // BN * BN
        inside = tl.maximum(first + BM - window + BN - 1, 0) // BN * BN
        inside = tl.minimum(tl.maximum(inside, start), diagonal)
        b_dq = _grad_queries(
            b_dq, b_q, b_do, b_lse, b_delta, p_k, p_v, start, inside, o_m, o_n, o_d, s_kt, s_vt,
            T, squash, factor, bias, window, D, BD, BN, NORM, True, WINDOW, CAP, PRECISION,
        )  # fmt: skip
    b_dq = _grad_queries(
        b_dq, b_q, b_do, b_lse, b_delta, p_k, p_v, inside, diagonal, o_m, o_n, o_d, s_kt, s_vt,
        T, squash, factor, bias, window, D, BD, BN, NORM, False, WINDOW, CAP, PRECISION,
    )  # fmt: skip
    b_dq = _grad_queries(
        b_dq, b_q, b_do, b_lse, b_delta, p_k, p_v, diagonal, stop, o_m, o_n, o_d, s_kt, s_vt,
        T, squash, factor, bias, window, D, BD, BN, NORM, True, WINDOW, CAP, PRECISION,
    )  # fmt: skip
    store_rows(p_dq + b * s_eb + h * s_eh, first, o_r, o_d, s_et, T, b_dq * scale, D, BD)
