"""Which numbers of a format the weights of a linear map become."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinks.quantize.formats import Format

Method = Literal["nearest", "clip", "gptq"]
SHRINKS = [1 - step / 40 for step in range(1, 21)]  # of what becomes the largest number: .975 to .5
DAMPING = 0.01  # of GPTQ, times the mean of the diagonal, as in the authors' code
LAZY = 128  # columns, a multiple of every block: those after them are updated by one product
Rounding = Callable[[Format, Tensor, Tensor], Tensor]  # weights [out, in] float32 and `largest` as in a format's call


def nearest(number_format: Format, weight: Tensor, largest: Tensor) -> Tensor:
    """The nearest numbers where the largest weight of a scale becomes the largest number."""
    return number_format(weight, largest)


def clipped(number_format: Format, weight: Tensor, largest: Tensor) -> Tensor:
    """The nearest numbers under the scale with the least squared error, of every block or row; larger weights saturate.

    Scales are those of the largest weight and of `SHRINKS` times it.
    """

    def best(values: Tensor, peak: Tensor, outer: Tensor) -> Tensor:
        found = number_format.at(values, number_format.scale(peak, outer))
        least = (found - values).square().sum(-1, keepdim=True)
        for shrink in SHRINKS:
            tried = number_format.at(values, number_format.scale(shrink * peak, outer))
            error = (tried - values).square().sum(-1, keepdim=True)
            found, least = torch.where(error < least, tried, found), torch.minimum(error, least)
        return found

    return number_format.by_block(weight, largest, best)


@dataclass(frozen=True)
class GPTQ:
    """One input after another, each error made good by the weights that are not rounded yet (arXiv:2210.17323).

    The output on calibration text is what stays close, not the weights. The scale of a block is that of its weights
    when its first input is reached.

    Args:
        products: sums of x x^T over calibration text [in, in].
    """

    products: Tensor

    def __call__(self, number_format: Format, weight: Tensor, largest: Tensor) -> Tensor:
        inverse = self._inverse_factor().to(weight)
        values, found = weight.clone(), torch.empty_like(weight)
        width, scale = weight.shape[1], number_format.scale(largest, largest)
        for start in range(0, width, LAZY):
            end = min(start + LAZY, width)
            errors = weight.new_zeros(len(weight), end - start)
            for j in range(start, end):
                if number_format.block is not None and j % number_format.block == 0:
                    peak = values[:, j : j + number_format.block].abs().amax(1, keepdim=True)
                    scale = number_format.scale(peak, largest)
                found[:, j] = number_format.at(values[:, j, None], scale)[:, 0]
                errors[:, j - start] = (values[:, j] - found[:, j]) / inverse[j, j]
                values[:, j + 1 : end] -= errors[:, j - start, None] * inverse[j, j + 1 : end]
            values[:, end:] -= errors @ inverse[start:end, end:]
        return found

    def _inverse_factor(self) -> Tensor:
        """U, upper triangular, of U^T U = (products + damping)^-1; its row j updates the inputs after j."""
        products = self.products.double()
        damping = (DAMPING * products.diagonal().mean()).clamp_min(torch.finfo(torch.float32).tiny)
        damped = products + damping * torch.eye(len(products), dtype=products.dtype, device=products.device)
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
