"""Products of rows with one matrix of a stack each, for rows sorted by matrix.

One operator for autograd, torch.compile and fake tensors: sizes of its results do not depend on the groups' sizes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _has_kernel(x: Tensor, width: int) -> bool:
    """Whether torch's grouped product takes rows [N, K] and the other factor's width: bfloat16 on CUDA, both divisible
    by 8. Not run on a GPU yet."""
    return x.is_cuda and x.dtype is torch.bfloat16 and not (x.shape[1] % 8 or width % 8)


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)


@torch.library.custom_op("sinks::grouped_product", mutates_args=())
def _product(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    if _has_kernel(x, matrices.shape[2]):
        return F.grouped_mm(x.contiguous(), matrices, offs=_ends(counts))
    groups = x.split(counts.tolist())
    return torch.cat([rows @ matrix for rows, matrix in zip(groups, matrices, strict=True)])


@_product.register_fake
def _(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], matrices.shape[2])


@torch.library.custom_op("sinks::grouped_outer", mutates_args=())
def _outer(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Of each group x^T y: [N, K], [N, M] -> [G, K, M]."""
    if _has_kernel(x, y.shape[1]):
        product = F.grouped_mm(x.contiguous().T, y.contiguous(), offs=_ends(counts))
        return product.where(counts[:, None, None] > 0, 0.0)  # of an empty group nothing may have been written
    sizes = counts.tolist()
    return torch.stack([a.T @ b for a, b in zip(x.split(sizes), y.split(sizes), strict=True)])


@_outer.register_fake
def _(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(counts.shape[0], x.shape[1], y.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    x, matrices, counts = ctx.saved_tensors
    return _product(gradient, matrices.mT, counts), _outer(x, gradient, counts), None


_product.register_autograd(_backward, setup_context=_save)


def grouped_product(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """Rows times the matrix of their group; under autocast in its dtype, as every product is.

    Args:
        x: [N, K], sorted by group.
        matrices: [G, K, M].
        counts: rows of each group [G] int64, which sum to N.

    Returns:
        [N, M].
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, matrices = x.to(dtype), matrices.to(dtype)
    return _product(x, matrices, counts)
