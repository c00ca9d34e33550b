"""Where Triton kernels can run, and device properties needed for a launch. Does not import Triton."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INSTALLED = importlib.util.find_spec("triton") is not None


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


def gpu_unsupported(device: torch.device) -> str | None:
    """Why this accelerator cannot run the Triton kernels; None if it can, or is none."""
    if device.type in ("cpu", "meta"):
        return None
    from sink_kernels import accelerators  # it imports the compiler, for seconds

    return accelerators.unsupported(device)


def runs_kernels(device: torch.device) -> bool:
    """Whether `auto` may choose Triton on this device; where an accelerator is left out, one line says so, once."""
    if device.type in ("cpu", "meta"):
        return False
    from sink_kernels import accelerators

    return accelerators.runs_kernels(device)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU current: Triton launches on the current device, regardless of its tensors' device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def is_nvidia(device: torch.device) -> bool:
    """Whether PTX and TF32 are available: neither on ROCm nor in the interpreter."""
    return device.type == "cuda" and torch.version.hip is None
