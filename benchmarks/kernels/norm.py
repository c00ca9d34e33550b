"""GatedNorm: ours, torch eager and torch.compile, against RMSNorm without a gate and the copy roof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from sink_kernels import gated_norm
from torch import Tensor

from benchmarks.kernels.baselines import norm_baselines
from benchmarks.kernels.measure import Bench, reason_of, worst_relative_error

TOLERANCE = 2e-2
RANK = 16


def shapes(dry: bool) -> list[tuple[int, int]]:
    """(rows, width) of x."""
    return [(96, 64)] if dry else [(32768, width) for width in (1024, 2048, 4096, 8192)]


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """One row of results a contestant and shape."""
    baselines, missing = norm_baselines(bench.device)
    yield {"table": "missing baselines", **missing}
    contestants: dict[str, tuple[bool, Callable[..., Tensor]]] = {
        "sink_kernels": (True, gated_norm),
        "torch eager": (True, _unfused),
    }
    if bench.device.type == "cuda":
        contestants["torch.compile"] = (True, torch.compile(_unfused))
    for name, baseline in baselines.items():
        contestants[name] = (False, lambda x, weight, *_, run=baseline: run(x, weight))
    for count, width in shapes(bench.dry):
        for name, (gated, run) in contestants.items():
            yield {
                "table": "norm",
                "contestant": name,
                "gated": gated,
                "rows": count,
                "width": width,
                **_attempt(bench, run, gated, count, width),
            }


def _unfused(x: Tensor, weight: Tensor, w_down: Tensor, w_up: Tensor) -> Tensor:
    n = F.rms_norm(x, weight.shape, weight, 1e-6)
    return n * torch.sigmoid(F.linear(F.silu(F.linear(n, w_down)), w_up))


def _inputs(bench: Bench, rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator(bench.device).manual_seed(0)

    def randn(*size: int) -> Tensor:
        values = torch.randn(*size, generator=generator, device=bench.device)
        return values.to(torch.bfloat16).to(dtype)

    down, up = randn(RANK, width) * width**-0.5, randn(width, RANK) * RANK**-0.5
    return [x.detach().requires_grad_() for x in (randn(rows, width), randn(width), down, up)]


def _gradients(y: Tensor, inputs: list[Tensor], gated: bool) -> list[Tensor]:
    generator = torch.Generator(y.device).manual_seed(1)
    grad = torch.randn(y.shape, generator=generator, device=y.device).to(torch.bfloat16).to(y.dtype)
    return [y, *torch.autograd.grad(y, inputs if gated else inputs[:2], grad)]


def _attempt(bench: Bench, run: Callable[..., Tensor], gated: bool, rows: int, width: int) -> dict[str, Any]:
    try:
        return _measure(bench, run, gated, rows, width)
    # Whoever refuses a shape or runs out of memory does so in its own way; the table says so and goes on.
    except Exception as failure:
        return {"refused": reason_of(failure)}


def _measure(bench: Bench, run: Callable[..., Tensor], gated: bool, rows: int, width: int) -> dict[str, Any]:
    short = min(rows, 512)
    own, exact = _inputs(bench, short, width), _inputs(bench, short, width, torch.float64)
    reference = _unfused if gated else (lambda x, weight, *_: F.rms_norm(x, weight.shape, weight, 1e-6))
    error = worst_relative_error(_gradients(run(*own), own, gated), _gradients(reference(*exact), exact, gated))
    if error > TOLERANCE:
        return {"error": error, "refused": f"wrong: relative error {error:.1e}, the limit is {TOLERANCE:.0e}"}
    inputs = _inputs(bench, rows, width)
    times = bench.forward_and_backward(lambda: run(*inputs), inputs if gated else inputs[:2])
    forward, backward = times["forward_ms"], times["backward_ms"]
    assert forward is not None
    assert backward is not None
    moved = 2 * rows * width
    # The least a pass can move: x and y; x, dy and dx.
    speeds = {"forward_gbs": 2 * moved / forward / 1e6, "backward_gbs": 3 * moved / backward / 1e6}
    return {"error": error, **times, **speeds}
