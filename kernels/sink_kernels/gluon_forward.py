# mypy: allow-untyped-defs, allow-incomplete-defs
"""The forward in Gluon for sm_90: one warp loads by TMA, two warpgroups compute, scores are computed ahead.

A candidate: it has been compiled, and its schedule run on a CPU, but never on a GPU. Both products, those of these
weights with their values and those of the queries with the next keys, run on the tensor cores beside the softmax of the
keys between. Before the weights are used a warpgroup waits for both, because the compiler serializes products whose
accumulators change while others run.
"""

from __future__ import annotations

import math
from typing import Any

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sink_kernels.tiles import Tile

LOG2E = gl.constexpr(1 / math.log(2))
LN2 = gl.constexpr(math.log(2))
FAR_BELOW = gl.constexpr(-(2.0**100))  # in place of minus infinity, as in `triton_math`
SOFTMAX, LEARNABLE_SINK = gl.constexpr(0), gl.constexpr(1)
HEAD_GATE, ELEMENT_GATE = gl.constexpr(1), gl.constexpr(2)
HEAD_DIMS = (64, 128)
# So many registers a thread let the loading warp give up all but 24, and the two warpgroups have 240.
REGISTERS = 168


@gluon.jit
def _load(q, k, v, tiles, barriers, b, h, h_kv, first, blocks, BN: gl.constexpr, STAGES: gl.constexpr):
    """The loading warp: the queries once, then the keys and values of each block into the next free stage."""
    q_tile, k_tiles, v_tiles = tiles
    q_ready, k_ready, k_free, v_ready, v_free = barriers
    mbarrier.expect(q_ready, q.block_type.nbytes)
    tma.async_copy_global_to_shared(q, [b, h, first, 0], q_ready, q_tile)
    for i in range(blocks):
        stage = i % STAGES
        phase = i // STAGES & 1
        mbarrier.wait(k_free.index(stage), phase ^ 1)
        mbarrier.expect(k_ready.index(stage), k.block_type.nbytes)
        tma.async_copy_global_to_shared(k, [b, h_kv, i * BN, 0], k_ready.index(stage), k_tiles.index(stage))
        mbarrier.wait(v_free.index(stage), phase ^ 1)
        mbarrier.expect(v_ready.index(stage), v.block_type.nbytes)
        tma.async_copy_global_to_shared(v, [b, h_kv, i * BN, 0], v_ready.index(stage), v_tiles.index(stage))


@gluon.jit
def _scores(q_rows, k_tiles, k_ready, i, b_zero, D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr):
    """Start the raw dot products [BM, BN] of the queries with block i of the keys."""
    mbarrier.wait(k_ready.index(i % STAGES), i // STAGES & 1)
    keys = k_tiles.index(i % STAGES).reshape([BN, D]).permute((1, 0))
    return warpgroup_mma(q_rows, keys, b_zero, use_acc=False, is_async=True)


@gluon.jit
def _softmax(b_s, b_max, b_total, o_m, o_n, factor, MASKED: gl.constexpr, OUT: gl.constexpr):
    """Weights of one block before normalization; the new maximum and total; the decay of the output so far."""
    if MASKED:
        b_s = gl.where(o_m[:, None] >= o_n[None, :], b_s, FAR_BELOW)
    b_new = gl.maximum(b_max, gl.max(b_s, 1))
    b_decay = gl.exp2((b_max - b_new) * factor)
    b_p = gl.exp2(b_s * factor - (b_new * factor)[:, None])
    b_total = b_total * b_decay + gl.sum(b_p, 1)
    return b_p, b_new, b_total, gl.convert_layout(b_decay, gl.SliceLayout(1, OUT))


@gluon.jit
def _attend(
    b_s, b_out, b_max, b_total, b_zero, tiles, barriers, start, stop, o_m, o_n, factor,
    D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, MASKED: gl.constexpr, OUT: gl.constexpr,
):  # fmt: skip
    """Attend to blocks [start, stop) of the keys.

    b_s are the scores of block `start`, and those of `stop` are returned; of the running output b_out the last product
    may still run.
    """
    q_tile, k_tiles, v_tiles = tiles
    _, k_ready, k_free, v_ready, v_free = barriers
    q_rows = q_tile.reshape([BM, D])
    for i in range(start, stop):
        b_next = _scores(q_rows, k_tiles, k_ready, i + 1, b_zero, D, BN, STAGES)
        b_p, b_max, b_total, b_decay = _softmax(b_s, b_max, b_total, o_m, i * BN + o_n, factor, MASKED, OUT)
        b_p = gl.convert_layout(b_p.to(q_tile.dtype), gl.DotOperandLayout(0, OUT, 2))
        mbarrier.wait(v_ready.index(i % STAGES), i // STAGES & 1)
        # With the weights among what it returns, the wait stays below the exponentials.
        b_s, b_sum, b_p = warpgroup_mma_wait(0, deps=(b_next, b_out, b_p))
        mbarrier.arrive(k_free.index((i + 1) % STAGES), count=1)
        mbarrier.arrive(v_free.index((i + STAGES - 1) % STAGES), count=1, pred=i > 0)
        b_sum = b_sum * b_decay[:, None]
        b_out = warpgroup_mma(b_p, v_tiles.index(i % STAGES).reshape([BN, D]), b_sum, is_async=True)
    return b_s, b_out, b_max, b_total


@gluon.jit
def _compute(
    tiles, barriers, p_sink, p_gate, p_out, p_lse, s_gt, s_ot, h, first, T, blocks, factor,
    D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, NORM: gl.constexpr, GATE: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """The two warpgroups: BM queries of one head, 64 rows each."""
    q_tile, k_tiles, v_tiles = tiles
    q_ready, k_ready, k_free, v_ready, _ = barriers
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    o_m = first + gl.arange(0, BM, gl.SliceLayout(1, SCORES))
    o_n = gl.arange(0, BN, gl.SliceLayout(0, SCORES))
    b_zero = gl.zeros([BM, BN], gl.float32, SCORES)
    b_out = warpgroup_mma_init(gl.zeros([BM, D], gl.float32, OUT))
    b_max = gl.full([BM], FAR_BELOW, gl.float32, gl.SliceLayout(1, SCORES))
    b_total = gl.zeros([BM], gl.float32, gl.SliceLayout(1, SCORES))
    mbarrier.wait(q_ready, 0)
    b_s = _scores(q_tile.reshape([BM, D]), k_tiles, k_ready, 0, b_zero, D, BN, STAGES)
    b_s = warpgroup_mma_wait(0, deps=(b_s,))
    mbarrier.arrive(k_free.index(0), count=1)
    last = blocks - 1
    inside = first // BN
    b_s, b_out, b_max, b_total = _attend(
        b_s, b_out, b_max, b_total, b_zero, tiles, barriers, 0, inside, o_m, o_n, factor,
        D, BM, BN, STAGES, False, OUT,
    )  # fmt: skip
    b_s, b_out, b_max, b_total = _attend(
        b_s, b_out, b_max, b_total, b_zero, tiles, barriers, inside, last, o_m, o_n, factor,
        D, BM, BN, STAGES, True, OUT,
    )  # fmt: skip
    b_p, b_max, b_total, b_decay = _softmax(b_s, b_max, b_total, o_m, last * BN + o_n, factor, True, OUT)
    b_p = gl.convert_layout(b_p.to(q_tile.dtype), gl.DotOperandLayout(0, OUT, 2))
    mbarrier.wait(v_ready.index(last % STAGES), last // STAGES & 1)
    b_sum = warpgroup_mma_wait(0, deps=(b_out,)) * b_decay[:, None]
    b_sum = warpgroup_mma(b_p, v_tiles.index(last % STAGES).reshape([BN, D]), b_sum)

    b_top = b_max * factor
    if NORM != SOFTMAX:
        sink = 0.0
        if NORM == LEARNABLE_SINK:
            sink = gl.load(p_sink + h).to(gl.float32) * LOG2E
        b_new = gl.maximum(b_top, sink)
        b_decay = gl.exp2(b_top - b_new)
        b_total = b_total * b_decay + gl.exp2(sink - b_new)
        b_sum = b_sum * gl.convert_layout(b_decay, gl.SliceLayout(1, OUT))[:, None]
        b_top = b_new
    gl.store(p_lse + o_m, (b_top + gl.log2(b_total)) * LN2, mask=o_m < T)
    b_sum = b_sum / gl.convert_layout(b_total, gl.SliceLayout(1, OUT))[:, None]
    o_r = first + gl.arange(0, BM, gl.SliceLayout(1, OUT))
    o_d = gl.arange(0, D, gl.SliceLayout(0, OUT))
    m_row = o_r < T
    if GATE == HEAD_GATE:
        b_g = gl.load(p_gate + o_r.to(gl.int64) * s_gt, mask=m_row, other=0.0).to(gl.float32)
        b_sum = b_sum / (1.0 + gl.exp2(-b_g * LOG2E))[:, None]
    if GATE == ELEMENT_GATE:
        p_rows = p_gate + o_r.to(gl.int64)[:, None] * s_gt + o_d[None, :]
        b_g = gl.load(p_rows, mask=m_row[:, None], other=0.0).to(gl.float32)
        b_sum = b_sum / (1.0 + gl.exp2(-b_g * LOG2E))
    p_rows = p_out + o_r.to(gl.int64)[:, None] * s_ot + o_d[None, :]
    gl.store(p_rows, b_sum.to(p_out.dtype.element_ty), mask=m_row[:, None])


@gluon.jit
def gluon_forward_kernel(
    q, k, v, p_sink, p_gate, p_out, p_lse, s_gb, s_gh, s_gt, s_ob, s_oh, s_ot, H, T, scale,
    D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
    NORM: gl.constexpr, GATE: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """One program: BM queries of one head; q, k and v are descriptors of [B, H, T, D], zero past the last token.

    Grid: blocks of queries (fastest, longest rows first) x B * H.
    """
    q_tile = gl.allocate_shared_memory(q.dtype, [1, 1, BM, D], q.layout)
    k_tiles = gl.allocate_shared_memory(k.dtype, [STAGES, 1, 1, BN, D], k.layout)
    v_tiles = gl.allocate_shared_memory(v.dtype, [STAGES, 1, 1, BN, D], v.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(k_free.index(i), count=1)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(v_free.index(i), count=1)
    tiles = (q_tile, k_tiles, v_tiles)
    barriers = (q_ready, k_ready, k_free, v_ready, v_free)

    rows = gl.cdiv(T, BM)
    first = (rows - 1 - gl.program_id(0) % rows) * BM
    bh = gl.program_id(0) // rows
    b = bh // H
    h = bh % H
    blocks = gl.cdiv(gl.minimum(first + BM, T), BN)
    p_gate += gl.cast(b, gl.int64) * s_gb + gl.cast(h, gl.int64) * s_gh
    p_out += gl.cast(b, gl.int64) * s_ob + gl.cast(h, gl.int64) * s_oh
    p_lse += gl.cast(bh, gl.int64) * T
    gl.warp_specialize(
        [
            (
                _compute,
                (
                    tiles, barriers, p_sink, p_gate, p_out, p_lse, s_gt, s_ot, h, first, T, blocks, scale * LOG2E,
                    D, BM, BN, STAGES, NORM, GATE, num_warps,
                ),
            ),
            (_load, (q, k, v, tiles, barriers, b, h, h // GROUP, first, blocks, BN, STAGES)),
        ],
        [1],
        [24],
    )  # fmt: skip


def unsupported(q: Tensor, k: Tensor, v: Tensor, constants: dict[str, Any], statistics: bool) -> str | None:
    """Why the other kernel must run, None if this one can: TMA needs 16-byte steps and a dense last dimension."""
    if statistics or constants["WINDOW"] or constants["CAP"] or constants["NORM"] == 3:
        return "statistics, windows, softcap and sigmoid are not supported"
    if constants["D"] not in HEAD_DIMS or q.element_size() != 2:
        return f"head dimension {constants['D']} of {q.dtype} is not supported"
    aligned = all(
        x.data_ptr() % 16 == 0 and x.stride(-1) == 1 and all(step * 2 % 16 == 0 for step in x.stride()[:-1])
        for x in (q, k, v)
    )
    return None if aligned else "q, k and v are not aligned to 16 bytes"


def launch(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor, gate: Tensor, out: Tensor, lse: Tensor, scale: float,
    constants: dict[str, Any], gate_kind: int, tile: Tile,
) -> None:  # fmt: skip
    """Write `out` and `lse`; `sink` and `gate` are any tensors where there are none."""
    batch, heads, tokens, head_dim = q.shape

    def descriptor(x: Tensor, rows: int) -> TensorDescriptor:
        shape = [1, 1, rows, head_dim]
        layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
        return TensorDescriptor(x, list(x.shape), list(x.stride()), shape, layout)

    gluon_forward_kernel[(triton.cdiv(tokens, tile.rows) * batch * heads,)](
        descriptor(q, tile.rows), descriptor(k, tile.columns), descriptor(v, tile.columns), sink, gate, out, lse,
        *gate.stride()[:3], *out.stride()[:3], heads, tokens, scale,
        D=head_dim, BM=tile.rows, BN=tile.columns, GROUP=constants["GROUP"], STAGES=tile.stages,
        NORM=constants["NORM"], GATE=gate_kind, num_warps=tile.warps, maxnreg=REGISTERS,
    )  # fmt: skip
