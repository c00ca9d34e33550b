"""`make bench`, first part: attention with a sink and gates on the CPU against torch's own, forward and backward.

The contestants take turns in one process; reported is the median of the per-turn ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sink_kernels import attention
from torch import Tensor

from benchmarks.turns import in_turns, print_provenance

SHAPES = ((16, 1, 64, 128), (8, 4, 256, 64), (2, 4, 1024, 64))


def contestants(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Callable[[], tuple[float, float]]]:
    """Name -> seconds of a forward and of its backward."""
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    sink = torch.zeros(shape[1], requires_grad=True)
    head = torch.randn(shape[:3]).to(dtype).requires_grad_()
    element = torch.randn(shape).to(dtype).requires_grad_()
    grad = torch.randn(shape).to(dtype)

    def timed(function: Callable[[], Tensor]) -> Callable[[], tuple[float, float]]:
        def run() -> tuple[float, float]:
            start = time.perf_counter()
            out = function()
            middle = time.perf_counter()
            out.backward(grad)
            return middle - start, time.perf_counter() - middle

        return run

    return {
        "SDPA": timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        "softmax": timed(lambda: attention(q, k, v)),
        "learnable sink": timed(lambda: attention(q, k, v, normalizer="learnable_sink", sink=sink)),
        "head-wise gate": timed(lambda: attention(q, k, v, gate=head)),
        "element-wise gate": timed(lambda: attention(q, k, v, gate=element)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); ratios to SDPA, median of {repeats} turns")
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            seconds = in_turns(contestants(shape, dtype), repeats)
            for name, values in seconds.items():
                pairs = list(zip(values, seconds["SDPA"], strict=True))
                forward, backward = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
                whole = statistics.median(sum(a) / sum(b) for a, b in pairs)
                print(
                    f"{'x'.join(map(str, shape)):>14} {str(dtype).removeprefix('torch.'):<9} {name:<18} "
                    f"forward {forward:.2f}  backward {backward:.2f}  both {whole:.2f}"
                )
    print_provenance()


if __name__ == "__main__":
    main()
