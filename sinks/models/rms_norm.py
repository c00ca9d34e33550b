"""RMS normalization; on a CPU in fewer passes over memory than torch's own, which has no kernel for it there."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    Args:
        x: [..., D].
        weight: [D].
        eps: added to the mean square.
    """
    exact = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    if x.device.type == "cpu" and exact and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
        inverse = mean_square.add_(eps).rsqrt_()
        normalized = x * inverse
        ctx.save_for_backward(normalized, inverse, weight)
        return normalized * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normalized, inverse, weight = ctx.saved_tensors
        product = gradient * normalized
        # The mean of `product * weight` is the part of the gradient that changes only the RMS.
        mean = (product * weight).mean(-1, keepdim=True)
        to_x = torch.addcmul(gradient * weight, normalized, mean, value=-1).mul_(inverse)
        return to_x, product.flatten(0, -2).sum(0), None
