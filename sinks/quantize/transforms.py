"""What is done to an input and, inversely, to the weights that read it, before both are rounded.

Without rounding the product is the same: (x T) (W T^-T)^T = x W^T. It is done inside the linear map, which is exact for
every model; nothing is folded into the module before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.quantize.hadamard import hadamard
from sinks.quantize.inputs import SharedInput

Name = Literal["none", "smooth", "smooth-all", "hadamard", "hadamard-16"]
SMALLEST = 1e-5  # of a smoothing factor, and of what it is made of
NORM_FED = ("attention.in", "feed_forward.in")


@dataclass(frozen=True)
class Transform:
    """A pair of functions: of inputs [..., in], and of weights [out, in]."""

    inputs: Callable[[Tensor], Tensor]
    weights: Callable[[Tensor], Tensor]


NONE = Transform(lambda x: x, lambda w: w)


def transform_of(name: Name, read: SharedInput, channel_largest: Tensor | None) -> Transform:
    """The transform of one input.

    "smooth" is SmoothQuant at strength .5 (arXiv:2211.10438) where a norm feeds the input, "smooth-all" everywhere;
    "hadamard" rotates the whole width, "hadamard-16" blocks of 16 channels.

    Args:
        name: of the transform.
        read: the input, whose maps have the same factors.
        channel_largest: of each channel of the input, the largest |x| in calibration [in]; for smoothing.

    Raises:
        UserError: if there is no Hadamard matrix of the width, or 16 does not divide it.
    """
    if name == "hadamard-16":
        if read.width % 16:
            raise UserError(f"{read.name} has {read.width} channels, which 16 does not divide: choose smooth or none")
        return _rotation(16, read.first.weight)
    if name == "hadamard":
        return _rotation(read.width, read.first.weight)
    if name == "smooth-all" or (name == "smooth" and read.kind in NORM_FED):
        assert channel_largest is not None, "calibration comes first"
        return _smoothing(read, channel_largest)
    return NONE


def require_rotations(name: Name, inputs: Iterable[SharedInput]) -> None:
    """Check, before anything is measured, that a rotation has a matrix for every input.

    Raises:
        UserError: naming the first that has none.
    """
    if name.startswith("hadamard"):
        for each in inputs:
            transform_of(name, each, None)


def _smoothing(read: SharedInput, channel_largest: Tensor) -> Transform:
    weight = torch.stack([linear.weight.detach().abs().amax(0) for linear in read.linears.values()]).amax(0)
    roots = (channel_largest.to(weight.dtype).clamp_min(SMALLEST).sqrt(), weight.clamp_min(SMALLEST).sqrt())
    factor = (roots[0] / roots[1]).clamp_min(SMALLEST)
    return Transform(lambda x: x / factor.to(x.dtype), lambda w: w * factor.to(w.dtype))


def _rotation(size: int, weight: Tensor) -> Transform:
    matrix = hadamard(size, weight.dtype, weight.device)

    def rotate(x: Tensor) -> Tensor:
        return (x.unflatten(-1, (-1, size)) @ matrix).flatten(-2)

    return Transform(rotate, rotate)
