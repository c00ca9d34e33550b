"""Which number format weights and activations have, and over what a scale reaches."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sinks.errors import UserError
from sinks.quantize.formats import FP8, MXFP4, NVFP4, Blocks, Format, Integer
from sinks.quantize.rounding import Rounding, nearest

# Over what one float32 scale reaches: a row (a token, an output channel), a tensor as it comes, or a constant.
Reach = Literal["row", "tensor", "static"]
Only = Literal["both", "weights", "activations"]


@dataclass(frozen=True)
class Quantizer:
    """A number format and where its scales come from.

    Args:
        format: of the values.
        reach: of one scale; "row" is the last dimension, "static" a tensor's largest |x| found in calibration.
        largest: that value.
        rounding: to which of the numbers.
    """

    format: Format
    reach: Reach = "row"
    largest: Tensor | None = None
    rounding: Rounding = nearest

    def __call__(self, x: Tensor) -> Tensor:
        """Values [..., K] that the format can hold, in x's dtype.

        Raises:
            UserError: if a value is NaN or infinite.
        """
        values = x.float()
        row = values.abs().amax(-1, keepdim=True)
        largest = row.amax()
        if not largest.isfinite():
            raise UserError("a value to be quantized is NaN or infinite: look at the model's activations first")
        if self.reach == "row":
            largest = row
        elif self.reach == "static":
            assert self.largest is not None, "calibration comes first"
            largest = self.largest
        return self.rounding(self.format, values, largest).to(x.dtype)

    def calibrated(self, largest: Tensor) -> "Quantizer":
        """The same with a constant scale, if its scales are constant."""
        return replace(self, largest=largest.float()) if self.reach == "static" else self


@dataclass(frozen=True)
class Scheme:
    """Quantizers of weights [out, in] and of activations [..., in]; None leaves them as they are."""

    weights: Quantizer | None
    activations: Quantizer | None


SCHEMES = {
    "w8a8": Scheme(Quantizer(Integer(8)), Quantizer(Integer(8))),
    "w4a16": Scheme(Quantizer(Blocks(Integer(4), 128)), None),
    "int4": Scheme(Quantizer(Integer(4)), Quantizer(Integer(4))),
    "fp8": Scheme(Quantizer(FP8()), Quantizer(FP8())),
    "mxfp4": Scheme(Quantizer(MXFP4()), Quantizer(MXFP4())),
    # A float32 scale of a whole activation would depend on later tokens and on other rows.
    "nvfp4": Scheme(Quantizer(NVFP4(), "tensor"), Quantizer(NVFP4())),
}


def scheme_of(name: str, activations: Reach = "row", only: Only = "both") -> Scheme:
    """A scheme by its name, narrowed.

    Args:
        name: of `SCHEMES`.
        activations: over what a scale of activations reaches.
        only: what is quantized.

    Raises:
        UserError: if there is none, or nothing would be quantized, or the format has no scale of that reach.
    """
    if name not in SCHEMES:
        raise UserError(f"scheme is {name!r}, which is none: give one of {', '.join(SCHEMES)}")
    scheme = SCHEMES[name]
    weights, inputs = scheme.weights, scheme.activations
    if only != "both":
        weights, inputs = (weights, None) if only == "weights" else (None, inputs)
    if weights is None and inputs is None:
        raise UserError(f"scheme {name} has no quantized {only}: give another scheme, or leave --only out")
    if inputs is not None and activations != "row":
        if not inputs.format.outer:
            raise UserError(f"scheme {name} has scales for blocks only: leave --activation_scale out")
        inputs = replace(inputs, reach=activations)
    return Scheme(weights, inputs)
