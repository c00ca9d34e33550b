"""Time, peak memory, and the roofs of this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch._dynamo
from torch import Tensor

from benchmarks.kernels.checks import gradients, relative_error

# Against float64, output and gradients in bfloat16; twice the error of a textbook implementation.
TOLERANCE = 2e-2


class Bench(NamedTuple):
    """Where and how thoroughly to measure."""

    device: torch.device
    dry: bool

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """Median time of a call; on a GPU with a cold L2 cache."""
        if self.device.type == "cuda":
            from triton.testing import do_bench

            return float(do_bench(run, warmup=25, rep=100, return_mode="median"))
        times = []
        for _ in range(2 if self.dry else 10):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times)

    def peak_mebibytes(self, run: Callable[[], Any]) -> float | None:
        """Peak memory allocated by a call; None without a GPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def forward_and_backward(self, run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Times of both passes, and the peak memory of a forward followed by a backward."""
        grad = torch.randn_like(run())
        out = run()
        return {
            "forward_ms": self.milliseconds(run),
            "backward_ms": self.milliseconds(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)),
            "peak_mib": self.peak_mebibytes(lambda: torch.autograd.grad(run(), inputs, grad)),
        }

    def randn(self, *sizes: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """The same random tensors in every call, rounded to bfloat16 for every dtype."""
        generator = torch.Generator(self.device).manual_seed(0)
        tensors = (torch.randn(*size, generator=generator, device=self.device) for size in sizes)
        return [tensor.to(torch.bfloat16).to(dtype) for tensor in tensors]


def roofs(bench: Bench) -> dict[str, float]:
    """Measured, not from a data sheet: TFLOP/s of a large bfloat16 product, GB/s of a large copy."""
    side = 256 if bench.dry else 8192
    a, b = bench.randn((side, side), (side, side))
    source = torch.empty(2**18 if bench.dry else 2**30, device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "matmul_tflops": 2 * side**3 / bench.milliseconds(lambda: a @ b) / 1e9,
        "copy_gbs": 2 * source.numel() / bench.milliseconds(lambda: target.copy_(source)) / 1e6,
    }


def compile_alike() -> None:
    """Compile everything for its own shapes: no dynamic shapes, no silent fallback to eager execution."""
    torch._dynamo.reset()
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def attempt(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The measurement, or the reason for its failure as a row, so that the others continue."""
    try:
        return measure(*arguments)
    except Exception as failure:
        return {"refused": reason_of(failure)}


def reason_of(failure: Exception) -> str:
    """An exception as a short table cell."""
    lines = str(failure).splitlines()
    return f"{type(failure).__name__}: {lines[0][:100] if lines else ''}"


def gate(out: Tensor, inputs: Sequence[Tensor], exact: Tensor, exact_inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Worst relative error of an output and the gradients of its inputs; `refused` if it exceeds the tolerance."""
    own, expected = [out, *gradients(out, inputs)], [exact, *gradients(exact, exact_inputs)]
    error = max(map(relative_error, own, expected))
    wrong = {"refused": f"wrong: relative error {error:.1e}, the limit is {TOLERANCE:.0e}"}
    return {"error": error} | (wrong if error > TOLERANCE else {})
