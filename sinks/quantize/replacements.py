"""What is done to each input of a model and to the linear maps that read it, once calibration text was read."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from sinks.quantize.calibrate import channel_largest, input_products
from sinks.quantize.inputs import SharedInput
from sinks.quantize.linear import Replacement, rounded_weights
from sinks.quantize.rounding import GPTQ, Method, clipped
from sinks.quantize.schemes import Quantizer, Scheme
from sinks.quantize.transforms import Name, transform_of


def replacements_of(
    inputs: Sequence[SharedInput],
    scheme: Scheme,
    transform: Name,
    logits: Callable[[Tensor], Tensor],
    calibration: Sequence[Tensor],
    method: Method = "nearest",
) -> list[Replacement]:
    """What is done to each input.

    Args:
        inputs: that are quantized.
        scheme: number formats of weights and inputs.
        transform: of both.
        logits: runs the model over token ids [B, T].
        calibration: token ids, used where something depends on activations.
        method: by which weights are rounded.
    """
    largest = channel_largest(inputs, logits, calibration) if transform.startswith("smooth") else {}
    transforms = {each.name: transform_of(transform, each, largest.get(each.name)) for each in inputs}
    activations, weights = scheme.activations, scheme.weights
    quantizers: dict[str, Quantizer | None] = dict.fromkeys(transforms, activations)
    rounders: dict[str, Quantizer | None] = dict.fromkeys(transforms, weights)
    if activations is not None and activations.reach == "static":
        largest = channel_largest(inputs, logits, calibration, transforms)
        quantizers |= {name: activations.calibrated(x.amax()) for name, x in largest.items()}
    if weights is not None and method == "gptq":
        products = input_products(inputs, logits, calibration, transforms)
        rounders |= {name: replace(weights, rounding=GPTQ(x)) for name, x in products.items()}
    elif weights is not None and method == "clip":
        rounders = dict.fromkeys(transforms, replace(weights, rounding=clipped))
    return [
        Replacement(
            each,
            quantizers[each.name],
            transforms[each.name],
            rounded_weights(each, rounders[each.name], transforms[each.name]),
        )
        for each in inputs
    ]
