"""The rate that MFU is a share of: a data sheet's, for dense matrix products."""

import torch
from lightning.fabric.utilities.throughput import get_available_flops

# Lightning knows these by names that drivers do not report, and by rates for sparse matrices. NVIDIA's data sheets of
# H100 and H200 SXM state 1979 TFLOP/s with sparsity, twice the dense rate.
DENSE_BFLOAT16 = {"NVIDIA H200": 989.4e12, "NVIDIA H100 80GB HBM3": 989.4e12}


def dense_peak(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float | None:
    """Floating-point operations a second in `dtype`; None where no data sheet is known, so on every CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if dtype is torch.bfloat16 and name in DENSE_BFLOAT16:
        return DENSE_BFLOAT16[name]
    return get_available_flops(device, dtype)
