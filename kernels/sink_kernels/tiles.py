"""The tile table: block sizes, warps and stages of each attention kernel. Static; nothing is tuned at run time.

Chosen by the offline compile report (`make kernel-report`) with Triton 3.6: the best modeled
utilization without a spill in the hot loop, with some registers left for statistics and windows. Not yet ranked on a
GPU.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch


class Tile(NamedTuple):
    """Rows (queries) and columns (keys, channels) per program, warps, and pipeline stages.

    `schedule`, of the forward alone: "ahead" computes the scores of the next keys beside the softmax of these,
    "specialized" does so in Gluon, with a warp of its own for the loads, on sm_90 and for the calls it supports.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    schedule: Literal["plain", "ahead", "specialized"] = "plain"


KERNELS = ("forward", "backward_keys", "backward_queries", "key_mass")

# (kernel, padded head dimension), half precision.
_HOPPER: dict[tuple[str, int], Tile] = {
    ("forward", 32): Tile(128, 64, 4, 3),
    ("forward", 64): Tile(128, 64, 4, 3),
    ("forward", 128): Tile(128, 64, 8, 3),
    ("forward", 256): Tile(128, 64, 8, 2),
    ("backward_keys", 32): Tile(64, 128, 8, 2),
    ("backward_keys", 64): Tile(64, 128, 8, 2),
    ("backward_keys", 128): Tile(32, 128, 8, 2),
    ("backward_keys", 256): Tile(32, 64, 8, 2),  # by wgmma; with few spills, but 64 x 32 without has mma.sync alone
    ("backward_queries", 32): Tile(128, 64, 8, 2),
    ("backward_queries", 64): Tile(128, 128, 8, 2),
    ("backward_queries", 128): Tile(128, 64, 8, 2),
    ("backward_queries", 256): Tile(64, 32, 8, 2),
    ("key_mass", 32): Tile(64, 128, 8, 2),
    ("key_mass", 64): Tile(64, 128, 8, 2),
    ("key_mass", 128): Tile(64, 128, 8, 2),
    ("key_mass", 256): Tile(64, 64, 8, 2),
}
_AMPERE: dict[tuple[str, int], Tile] = _HOPPER | {
    ("forward", 128): Tile(128, 32, 8, 3),
    ("forward", 256): Tile(64, 32, 8, 2),
    ("backward_keys", 128): Tile(64, 64, 8, 2),
    ("backward_keys", 256): Tile(32, 32, 8, 1),
    ("backward_queries", 64): Tile(64, 64, 4, 2),
    ("backward_queries", 128): Tile(64, 64, 4, 2),
    ("backward_queries", 256): Tile(32, 32, 4, 2),
    ("key_mass", 256): Tile(64, 32, 8, 2),
}
# GPUs with 99 KB of shared memory per block. On sm_120 the A100's tiles of these kernels spill in the loop.
_CONSUMER: dict[tuple[str, int], Tile] = _AMPERE | {
    ("forward", 32): Tile(64, 64, 4, 2),
    ("forward", 64): Tile(64, 64, 4, 2),
    ("backward_keys", 128): Tile(32, 64, 8, 2),
}

# Candidates that `make gpu-report STAGES=c` ranks against the table's tiles: no spill in the hot loop on sm_90.
CANDIDATES: dict[tuple[str, int], tuple[Tile, ...]] = {
    ("forward", 64): (
        Tile(128, 128, 8, 2),
        Tile(128, 64, 8, 3),
        Tile(64, 64, 4, 3),
        Tile(128, 64, 4, 2),
        Tile(128, 64, 8, 3, "ahead"),
        Tile(128, 32, 4, 3, "ahead"),
    ),
    ("forward", 128): (
        Tile(128, 128, 8, 2),
        Tile(64, 64, 4, 3),
        Tile(128, 64, 8, 2),
        Tile(128, 64, 8, 3, "ahead"),
        Tile(128, 64, 8, 2, "ahead"),
    ),
    ("forward", 256): (Tile(64, 64, 8, 2), Tile(128, 32, 8, 2)),
    ("backward_keys", 64): (Tile(64, 64, 4, 2), Tile(32, 128, 8, 2), Tile(64, 128, 8, 3)),
    ("backward_keys", 128): (Tile(64, 64, 8, 2), Tile(64, 128, 8, 2), Tile(32, 128, 8, 3)),
    ("backward_keys", 256): (Tile(64, 32, 8, 1), Tile(16, 64, 8, 2), Tile(32, 64, 8, 1)),
    ("backward_queries", 64): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 3)),
    ("backward_queries", 128): (Tile(128, 128, 8, 2), Tile(64, 64, 4, 2), Tile(128, 64, 8, 3)),
    ("backward_queries", 256): (Tile(32, 32, 4, 2), Tile(64, 16, 4, 2)),
    ("key_mass", 64): (Tile(64, 128, 4, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3)),
    ("key_mass", 128): (Tile(64, 128, 4, 3), Tile(128, 128, 8, 2), Tile(64, 128, 8, 3)),
}

# Candidates of the forward in Gluon on sm_90, fastest by the offline model first; ranked apart, as none has ever run.
SPECIALIZED: dict[tuple[str, int], tuple[Tile, ...]] = {
    ("forward", 64): (Tile(128, 64, 8, 3, "specialized"), Tile(128, 128, 8, 2, "specialized")),
    ("forward", 128): (Tile(128, 64, 8, 2, "specialized"), Tile(128, 128, 8, 2, "specialized")),
}


def tile_for(kernel: str, head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tile:
    """The tile of `kernel` for a padded head dimension, a dtype and a compute capability."""
    hopper = capability[0] == 9 or capability in ((10, 0), (10, 3))
    if dtype == torch.float32:
        # Three tensor-core passes on split operands, which fill the registers.
        if head_dim > 64:
            small = head_dim > 128 or kernel == "backward_keys"
            return Tile(16, 16, 4, 1) if small else Tile(16, 32, 8, 1)
        return Tile(32 if kernel == "backward_keys" else 64, 64, 8, 1) if hopper else Tile(32, 32, 4, 1)
    table = _HOPPER if hopper else _AMPERE if capability == (8, 0) else _CONSUMER
    return table[kernel, max(head_dim, 32)]


def rows_a_block(head_dim: int) -> int:
    """Rows of a program of the element-wise first kernel of the backward, for a padded head dimension."""
    return 64 if head_dim <= 128 else 32


def norm_tile_for(kernel: str, rank: int) -> Tile:
    """The tile of a GatedNorm kernel. Tuned for ranks up to 32; above 64 the weight gradients spill registers."""
    if kernel != "backward_channels":
        return Tile(64, 64, 4, 2)
    return Tile(32, 64, 4, 2) if rank <= 32 else Tile(64, 64, 8, 1)


@functools.lru_cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of an H100 for the interpreter on a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
