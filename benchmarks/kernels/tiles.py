"""Ranking the candidate tiles of each attention kernel on this machine."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from sink_kernels import attention_op
from sink_kernels.options import Options
from sink_kernels.tiles import Tile, capability_of, tile_for

from benchmarks.kernels.measure import Bench, attempt


def ranking(bench: Bench, kernel: str, head_dim: int, candidates: Iterable[Tile]) -> list[dict[str, Any]]:
    """One row per tile, the table's and the candidates, fastest first; needs a GPU or the interpreter."""
    chosen = tile_for(kernel, head_dim, torch.bfloat16, capability_of(bench.device))
    timed: list[dict[str, Any]] = []
    for tile in dict.fromkeys((chosen, *candidates)):
        row = {"kernel": kernel, "head_dim": head_dim, "tile": list(tile)}
        timed.append({**row, "chosen": tile == chosen, **attempt(_measure, bench, kernel, head_dim, tile)})
    return sorted(timed, key=lambda row: row.get("ms", float("inf")))


@contextmanager
def replaced(kernel: str, tile: Tile) -> Iterator[None]:
    """Launch `kernel` with `tile`, and the other kernels with the table's tiles."""
    from sink_kernels import triton_attention

    def patched(name: str, width: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tile:
        return tile if name == kernel else tile_for(name, width, dtype, capability)

    with mock.patch.object(triton_attention, "tile_for", patched):
        yield


def _measure(bench: Bench, kernel: str, head_dim: int, tile: Tile) -> dict[str, Any]:
    """The milliseconds of the op that launches `kernel` with `tile`."""
    batch, tokens = (1, 48) if bench.dry else (4, 4096)
    heads = 1 if bench.dry else 2048 // head_dim
    dtype = torch.float32 if bench.dry else torch.bfloat16
    q, k, v, grad = (torch.randn(batch, heads, tokens, head_dim, device=bench.device).to(dtype) for _ in range(4))
    flat = attention_op.flat(Options("learnable_sink", scale=head_dim**-0.5))
    sink = torch.zeros(heads, device=bench.device)
    with replaced(kernel, tile):
        out, lse, *_ = attention_op.attention_forward(q, k, v, sink, None, *flat, False, False)
        runs: dict[str, Callable[[], Any]] = {
            "forward": lambda: attention_op.attention_forward(q, k, v, sink, None, *flat, False, False),
            "key_mass": lambda: attention_op.key_mass(q, k, lse, *flat),
            "backward": lambda: attention_op.attention_backward(grad, q, k, v, sink, None, out, lse, *flat),
        }
        return {"ms": bench.milliseconds(runs.get(kernel, runs["backward"]))}
