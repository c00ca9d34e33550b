"""GatedNorm: ours, torch eager and torch.compile, against RMSNorm without a gate and the copy roof."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from sink_kernels import gated_norm
from torch import Tensor

from benchmarks.kernels.baselines import norm_baselines
from benchmarks.kernels.measure import Bench, attempt, gate

RANK = 16
# By name: whether it has the gate, and what computes it.
Contestants = dict[str, tuple[bool, Callable[..., Tensor]]]


def shapes(dry: bool) -> list[tuple[int, int]]:
    """(rows, width) of x."""
    return [(96, 64)] if dry else [(32768, width) for width in (1024, 2048, 4096, 8192)]


def contestants(device: torch.device) -> tuple[Contestants, dict[str, str]]:
    """(ours, torch's and the available baselines, why the other baselines are missing)."""
    baselines, missing = norm_baselines(device)
    found: Contestants = {"sink_kernels": (True, gated_norm), "torch eager": (True, _unfused)}
    if device.type == "cuda":
        found["torch.compile"] = (True, torch.compile(_unfused, dynamic=False))
    for name, baseline in baselines.items():
        found[name] = (False, lambda x, weight, *_, run=baseline: run(x, weight))
    return found, missing


def rows(bench: Bench, contestants: Contestants, count: int, width: int) -> Iterator[dict[str, Any]]:
    """One row of results per contestant, for x [count, width]."""
    for name, (gated, run) in contestants.items():
        yield {
            "table": "norm",
            "contestant": name,
            "gated": gated,
            "rows": count,
            "width": width,
            **attempt(_measure, bench, run, gated, count, width),
        }


def _unfused(x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor) -> Tensor:
    n = F.rms_norm(x, weight.shape, weight, 1e-6)
    return n * torch.sigmoid(F.linear(F.silu(F.linear(n, w_down)), w_up))


def _inputs(bench: Bench, rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    x, weight, down, up = bench.randn((rows, width), (width,), (RANK, width), (width, RANK), dtype=dtype)
    return [t.requires_grad_() for t in (x, weight, down * width**-0.5, up * RANK**-0.5)]


def _measure(bench: Bench, run: Callable[..., Tensor], gated: bool, rows: int, width: int) -> dict[str, Any]:
    used = slice(None if gated else 2)  # a norm without a gate has no gradients of the gate's matrices
    own, exact = (_inputs(bench, min(rows, 512), width, dtype) for dtype in (torch.bfloat16, torch.float64))
    expected = _unfused(*exact) if gated else F.rms_norm(exact[0], exact[1].shape, exact[1], 1e-6)
    row = gate(run(*own), own[used], expected, exact[used])
    if "refused" in row:
        return row
    inputs = _inputs(bench, rows, width)
    row |= bench.forward_and_backward(lambda: run(*inputs), inputs[used])
    # Minimum traffic of a pass: x and y; x, dy and dx.
    moved = {"forward": 4 * rows * width, "backward": 6 * rows * width}
    return row | {f"{way}_gbs": count / row[f"{way}_ms"] / 1e6 for way, count in moved.items()}
