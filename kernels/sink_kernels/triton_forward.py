# mypy: allow-untyped-defs, allow-incomplete-defs
"""The fused forward: causal attention, its sink, its gate and its statistics in one pass over the keys.

Logits are kept as raw dot products: s = raw * scale, or cap * tanh(raw * scale / cap). The softmax runs
in base 2, so that exp(s - m) is one multiply-add and one exp2. Sink and gate are applied in the epilogue, at no cost
inside the loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sink_kernels.triton_math import (
    ELEMENT_GATE,
    FAR_BELOW,
    HEAD_GATE,
    LEARNABLE_SINK,
    LN2,
    LOG2E,
    SIGMOID,
    SOFTMAX,
    load_rows,
    sigmoid,
    sigmoid2,
    store_rows,
    tanh,
    visible,
)


@triton.jit
def _scores(
    b_q, p_k, n, o_n, o_d, s_kt, T,
    D: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Raw dot products [BM, BN] with the keys from n on; zero past the last."""
    b_k = load_rows(p_k, n, o_n, o_d, s_kt, T, D, BD, MASKED)  # [BN, BD]
    return tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)


@triton.jit
def _add_keys(
    b_out, b_total, b_max, b_slogs, b_s, p_v, n, o_m, o_n, o_d, s_vt, T, squash, factor, bias, window,
    D: tl.constexpr, BD: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The running output, total, maximum and sum of p * (s - maximum) with the keys from n on, of raw products b_s.

    For sigmoid that sum is of p log p. The maximum is subtracted because an entropy may be far smaller than the logits.
    """
    if CAP:
        b_s = tanh(b_s * squash)
    b_v = load_rows(p_v, n, o_n, o_d, s_vt, T, D, BD, MASKED)  # [BN, BD]
    if MASKED:
        m_seen = visible(o_m[:, None], n + o_n[None, :], T, window, WINDOW)
        b_s = tl.where(m_seen, b_s, FAR_BELOW)
    if NORM == SIGMOID:
        b_p = sigmoid2(b_s * factor + bias)
        if ROWS:
            b_max = tl.maximum(b_max, tl.max(b_s, 1))
            b_total += tl.sum(b_p, 1)
            b_slogs += tl.sum(b_p * tl.log2(tl.maximum(b_p, 1e-37)), 1)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)
    else:
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_decay = tl.exp2((b_max - b_new) * factor)
        b_p = tl.exp2(b_s * factor - (b_new * factor)[:, None])
        if ROWS:
            b_slogs = (b_slogs + b_total * (b_max - b_new)) * b_decay + tl.sum(b_p * (b_s - b_new[:, None]), 1)
        b_total = b_total * b_decay + tl.sum(b_p, 1)
        b_out = b_out * b_decay[:, None]
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)
        b_max = b_new
    return b_out, b_total, b_max, b_slogs


@triton.jit
def _attend(
    b_out, b_total, b_max, b_slogs, b_s, b_q, p_k, p_v, start, stop, o_m, o_n, o_d, s_kt, s_vt,
    T, squash, factor, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Attend to the keys in [start, stop).

    With AHEAD the raw products of the next keys are computed beside the softmax of these, so that the tensor cores work
    during the exponentials: b_s are the products with the first keys, and those with the keys from `stop` on are
    returned.
    """
    for n in range(start, stop, BN):
        if AHEAD:
            b_next = _scores(b_q, p_k, n + BN, o_n, o_d, s_kt, T, D, BD, True, PRECISION)
        else:
            b_s = _scores(b_q, p_k, n, o_n, o_d, s_kt, T, D, BD, MASKED, PRECISION)
        b_out, b_total, b_max, b_slogs = _add_keys(
            b_out, b_total, b_max, b_slogs, b_s, p_v, n, o_m, o_n, o_d, s_vt, T, squash, factor, bias, window,
            D, BD, NORM, ROWS, MASKED, WINDOW, CAP, PRECISION,
        )  # fmt: skip
        if AHEAD:
            b_s = b_next
    return b_out, b_total, b_max, b_slogs, b_s


@triton.jit
def attention_forward_kernel(
    p_q, p_k, p_v, p_sink, p_gate, p_out, p_lse, p_first, p_entropy, p_max,
    s_qb, s_qh, s_qt, s_kb, s_kh, s_kt, s_vb, s_vh, s_vt, s_gb, s_gh, s_gt, s_ob, s_oh, s_ot,
    H, T, scale, softcap, bias, window,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr,
    GATE: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One program: BM queries of one head. Grid: blocks of queries (fastest, longest rows first) x B * H."""
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
    p_k += b * s_kb + (h // GROUP) * s_kh
    p_v += b * s_vb + (h // GROUP) * s_vh

    squash = scale
    factor = scale * LOG2E
    bias = bias * LOG2E
    if CAP:
        squash = scale / softcap
        factor = softcap * LOG2E
    b_out = tl.zeros([BM, BD], tl.float32)
    b_total = tl.zeros([BM], tl.float32)
    b_max = tl.full([BM], FAR_BELOW, tl.float32)
    b_slogs = tl.zeros([BM], tl.float32)

    stop = tl.minimum(first + BM, T)
    diagonal = first // BN * BN
    start = 0
    inside = 0
    if WINDOW:
        start = tl.maximum(first - window + 1, 0) // BN * BN
        inside = tl.maximum(first + BM - window + BN - 1, 0) // BN * BN
        inside = tl.minimum(tl.maximum(inside, start), diagonal)
    b_s = tl.zeros([BM, BN], tl.float32)
    if AHEAD:
        b_s = _scores(b_q, p_k, start, o_n, o_d, s_kt, T, D, BD, True, PRECISION)
    if WINDOW:
        b_out, b_total, b_max, b_slogs, b_s = _attend(
            b_out, b_total, b_max, b_slogs, b_s, b_q, p_k, p_v, start, inside, o_m, o_n, o_d, s_kt, s_vt,
            T, squash, factor, bias, window, D, BD, BN, NORM, ROWS, True, WINDOW, CAP, PRECISION, AHEAD,
        )  # fmt: skip
    b_out, b_total, b_max, b_slogs, b_s = _attend(
        b_out, b_total, b_max, b_slogs, b_s, b_q, p_k, p_v, inside, diagonal, o_m, o_n, o_d, s_kt, s_vt,
        T, squash, factor, bias, window, D, BD, BN, NORM, ROWS, False, WINDOW, CAP, PRECISION, AHEAD,
    )  # fmt: skip
    b_out, b_total, b_max, b_slogs, b_s = _attend(
        b_out, b_total, b_max, b_slogs, b_s, b_q, p_k, p_v, diagonal, stop, o_m, o_n, o_d, s_kt, s_vt,
        T, squash, factor, bias, window, D, BD, BN, NORM, ROWS, True, WINDOW, CAP, PRECISION, AHEAD,
    )  # fmt: skip

    row = tl.cast(bh, tl.int64) * T + o_m
    if NORM == SIGMOID:
        b_lse = tl.log2(b_total)
        if ROWS:
            tl.store(p_lse + row, b_lse * LN2, mask=m_row)
            tl.store(p_max + row, b_max * factor * LN2, mask=m_row)
            tl.store(p_entropy + row, (b_lse - b_slogs / b_total) * LN2, mask=m_row)
    else:
        b_top = b_max * factor
        if ROWS:
            tl.store(p_max + row, b_top * LN2, mask=m_row)
        b_slogs = b_slogs * factor
        sink = 0.0
        if NORM == LEARNABLE_SINK:
            sink = tl.load(p_sink + h).to(tl.float32) * LOG2E
        if NORM != SOFTMAX:
            b_new = tl.maximum(b_top, sink)
            b_decay = tl.exp2(b_top - b_new)
            b_sink = tl.exp2(sink - b_new)
            # A sink at minus infinity has no mass and adds nothing.
            b_slogs = (b_slogs + b_total * (b_top - b_new)) * b_decay
            b_slogs += tl.where(b_sink > 0.0, b_sink * (sink - b_new), 0.0)
            b_total = b_total * b_decay + b_sink
            b_out = b_out * b_decay[:, None]
            b_top = b_new
        b_extra = tl.log2(b_total)
        b_lse = b_top + b_extra
        tl.store(p_lse + row, b_lse * LN2, mask=m_row)
        b_out = b_out / b_total[:, None]
        if ROWS:
            tl.store(p_entropy + row, (b_extra - b_slogs / b_total) * LN2, mask=m_row)
    if FIRST:
        b_k = tl.load(p_k + o_d, mask=o_d < D, other=0.0).to(tl.float32)
        b_s = tl.sum(b_q.to(tl.float32) * b_k[None, :], 1)
        if CAP:
            b_s = tanh(b_s * squash)
        if NORM == SIGMOID:
            b_p = sigmoid2(b_s * factor + bias) / b_total
        else:
            b_p = tl.exp2(b_s * factor - b_lse)
        if WINDOW:
            b_p = tl.where(o_m < window, b_p, 0.0)
        tl.store(p_first + row, b_p, mask=m_row)

    p_gate += b * s_gb + h * s_gh
    if GATE == HEAD_GATE:
        b_g = tl.load(p_gate + tl.cast(o_m, tl.int64) * s_gt, mask=m_row, other=0.0).to(tl.float32)
        b_out = b_out * sigmoid(b_g)[:, None]
    if GATE == ELEMENT_GATE:
        b_g = load_rows(p_gate, first, o_r, o_d, s_gt, T, D, BD, True).to(tl.float32)
        b_out = b_out * sigmoid(b_g)
    store_rows(p_out + b * s_ob + h * s_oh, first, o_r, o_d, s_ot, T, b_out, D, BD)
