"""What every Triton launch needs to know of its device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one: Triton launches on the current device, whatever its tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def is_nvidia(device: torch.device) -> bool:
    """Whether PTX and TF32 exist there: not on ROCm, not in the interpreter."""
    return device.type == "cuda" and torch.version.hip is None
