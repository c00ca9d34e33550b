"""Where Triton kernels can run, and device properties needed for a launch. Does not import Triton."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INSTALLED = importlib.util.find_spec("triton") is not None
# Older GPUs have no bfloat16 tensor cores: kernels spill thousands of registers there, or do not compile.
OLDEST_CAPABILITY = (8, 0)


def triton_unsupported(name: str, x: Tensor) -> str | None:
    """Why Triton kernels do not support the tensor called `name`, and what does; None if they do."""
    if not _INSTALLED:
        return "triton is not installed (it is Linux only): use backend='auto' or 'reference'"
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"backend 'triton' runs on a GPU, {name} is on {x.device}: use backend='auto', "
            "or TRITON_INTERPRET=1 to test kernels on the CPU"
        )
    if (reason := gpu_unsupported(x.device)) is not None:
        return f"{reason}: use backend='auto' or 'reference'"
    if x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"backend 'triton' supports {names}, {name} is {x.dtype}: cast {name} or use backend='reference'"
    return None


@torch.compiler.assume_constant_result
def gpu_unsupported(device: torch.device) -> str | None:
    """Why this accelerator cannot run the Triton kernels; None if it can, or is none."""
    if device.type in ("cpu", "meta"):
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        kind = "ROCm" if device.type == "cuda" else device.type
        return f"the Triton kernels are for NVIDIA GPUs and were never tried on {kind}"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST_CAPABILITY:
        limit = ".".join(map(str, OLDEST_CAPABILITY))
        return f"the Triton kernels need compute capability {limit}, {device} has {major}.{minor}"
    return None


@torch.compiler.assume_constant_result
def runs_kernels(device: torch.device) -> bool:
    """Whether `auto` may choose Triton on this device; where an accelerator is left out, one line says so, once."""
    if device.type in ("cpu", "meta"):
        return False
    reason = gpu_unsupported(device)
    if reason is not None:
        _warn(f"{reason}: everything is computed by the reference, in T x T memory")
    return reason is None


@functools.cache
def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU current: Triton launches on the current device, regardless of its tensors' device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def is_nvidia(device: torch.device) -> bool:
    """Whether PTX and TF32 are available: neither on ROCm nor in the interpreter."""
    return device.type == "cuda" and torch.version.hip is None
