"""What quantization has to know of a model's activations beforehand: how large they are, and what goes together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.quantize.inputs import SharedInput
from sinks.quantize.transforms import NONE, Transform
from sinks.quantize.watch import watching


@torch.no_grad()
def channel_largest(
    inputs: Sequence[SharedInput],
    run: Callable[[Tensor], object],
    batches: Iterable[Tensor],
    transforms: Mapping[str, Transform] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Of every input the largest |x| of each channel [in], by name; the first token of a row included.

    Args:
        inputs: that are watched.
        run: runs the model over token ids [B, T].
        batches: of calibration text, which is not text that is scored.
        transforms: of the inputs, by name, before they are measured.
    """
    largest: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        found = transforms.get(name, NONE).inputs(x).abs().flatten(0, -2).amax(0)
        before = largest.get(name)
        largest[name] = found if before is None else torch.maximum(before, found)

    with watching((each.first, partial(see, each.name)) for each in inputs):
        for batch in batches:
            run(batch)
    return largest


@torch.no_grad()
def input_products(
    inputs: Sequence[SharedInput],
    run: Callable[[Tensor], object],
    batches: Iterable[Tensor],
    transforms: Mapping[str, Transform],
) -> dict[str, Tensor]:
    """Of every input the sum of x x^T over all tokens [in, in], by name: twice it is the Hessian of a map's error.

    Args:
        inputs: that are watched.
        run: runs the model over token ids [B, T].
        batches: of calibration text.
        transforms: of the inputs, by name, before they are multiplied.

    Raises:
        UserError: if an activation is NaN or infinite.
    """
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x = transforms[name].inputs(x).flatten(0, -2)
        sums[name] = sums.get(name, 0) + x.T @ x

    with watching((each.first, partial(see, each.name)) for each in inputs):
        for batch in batches:
            run(batch)
    for name, products in sums.items():
        if not products.isfinite().all():
            raise UserError(f"the input {name} is NaN or infinite on calibration text: look at the activations first")
    return sums
