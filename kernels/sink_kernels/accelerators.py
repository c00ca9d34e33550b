"""Which accelerators run the Triton kernels. Constants of a compiled graph; imported where there is an accelerator."""

from __future__ import annotations

import functools
import warnings

import torch
from torch.cuda import is_available

# Older GPUs have no bfloat16 tensor cores: kernels spill thousands of registers there, or do not compile.
OLDEST_CAPABILITY = (8, 0)


@torch.compiler.assume_constant_result
def unsupported(device: torch.device) -> str | None:
    """Why this accelerator cannot run the Triton kernels; None if it can."""
    if device.type != "cuda" or torch.version.hip is not None:
        kind = "ROCm" if device.type == "cuda" else device.type
        return f"the Triton kernels are for NVIDIA GPUs and were never tried on {kind}"
    if not is_available():
        return None  # a plan for a GPU that is not here, on tensors without data
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST_CAPABILITY:
        limit = ".".join(map(str, OLDEST_CAPABILITY))
        return f"the Triton kernels need compute capability {limit}, {device} has {major}.{minor}"
    return None


@torch.compiler.assume_constant_result
def runs_kernels(device: torch.device) -> bool:
    """Whether this accelerator runs them; if not, one line says so, once."""
    reason = unsupported(device)
    if reason is not None:
        _warn(f"{reason}: everything is computed by the reference, in T x T memory")
    return reason is None


@functools.cache
def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)
