"""The benchmarks at tiny sizes: everything runs, wrong results are rejected, missing baselines are listed."""

from __future__ import annotations

import pytest
import torch
from sink_kernels.tiles import CANDIDATES

from benchmarks.kernels import attention as bench_attention
from benchmarks.kernels import norm as bench_norm
from benchmarks.kernels import tiles as bench_tiles
from benchmarks.kernels.measure import Bench, attempt, roofs
from benchmarks.kernels.results import markdown

DRY = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), dry=True)


def test_dry_rows_make_tables():
    attention, no_attention = bench_attention.contestants(DRY.device)
    norms, no_norm = bench_norm.contestants(DRY.device)
    rows = [
        row for shape in bench_attention.shapes(128, DRY.dry) for row in bench_attention.rows(DRY, attention, shape)
    ]
    rows += [row for size in bench_norm.shapes(DRY.dry) for row in bench_norm.rows(DRY, norms, *size)]
    missing = no_attention.keys() | no_norm.keys()
    measured = {row["contestant"] for row in rows if "contestant" in row}
    everyone = {"sink_kernels", "SDPA flash", "SDPA cuDNN", "FlexAttention, lse rescale", "FlashAttention-4"}
    everyone |= {"fla parallel_attn", "torch eager", "torch RMSNorm", "Liger RMSNorm"}
    assert everyone <= measured | missing
    assert not any("refused" in row for row in rows)
    assert all(row["error"] < 2e-2 for row in rows if "error" in row)
    found = roofs(DRY)
    tables = markdown([row | {"roofs": found} for row in rows])
    assert "## Attention, causal" in tables
    assert "## GatedNorm" in tables


def test_a_wrong_contestant_is_not_timed():
    wrong = bench_attention.Contestant("wrong", (), False, lambda inputs: inputs["q"] + inputs["k"] + inputs["v"])
    row = bench_attention.measure(DRY, wrong, bench_attention.Shape(1, 2, 48, 32))
    assert row["refused"].startswith("wrong")
    assert "forward_ms" not in row


def test_a_baseline_that_raises_is_a_row():
    def run(inputs):
        raise RuntimeError("no such shape")

    contestant = bench_attention.Contestant("baseline", (), False, run)
    row = attempt(bench_attention.measure, DRY, contestant, bench_attention.Shape(1, 2, 48, 32))
    assert row == {"refused": "RuntimeError: no such shape"}


def test_flops_are_counted_over_the_causal_half():
    assert bench_attention.Shape(8, 16, 4096, 128).forward_flops == 4 * 8 * 16 * 4096**2 * 128 / 2


@pytest.mark.usefixtures("triton_device")
def test_tiles_are_ranked_fastest_first():
    kernels = [kernel for kernel, head_dim in CANDIDATES if head_dim == 64]
    assert set(kernels) == {"forward", "backward_keys", "backward_queries", "key_mass"}
    for kernel in kernels:
        ranked = bench_tiles.ranking(DRY, kernel, 64, CANDIDATES[kernel, 64])
        assert len(ranked) >= len(CANDIDATES[kernel, 64])
        assert sum(row["chosen"] for row in ranked) == 1
        assert [row["ms"] for row in ranked] == sorted(row["ms"] for row in ranked)
