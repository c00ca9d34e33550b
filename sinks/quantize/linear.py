"""A linear map with simulated quantization, and a model in which these stand in place of its own."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.quantize.inputs import SharedInput
from sinks.quantize.schemes import Quantizer
from sinks.quantize.transforms import Transform
from sinks.quantize.watch import version


class Kept:
    """Which tokens' activations stay as they are, [B, T] bool; None: no token's."""

    mask: Tensor | None = None


class QuantizedInput:
    """The input of some linear maps, transformed and rounded once for all of them."""

    def __init__(self, quantizer: Quantizer | None, transform: Transform, kept: Kept) -> None:
        self._quantizer, self._transform, self._kept = quantizer, transform, kept
        self._last: tuple[Tensor, int, Tensor] | None = None  # an input, its version, and what became of it

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., in]."""
        if self._last is None or self._last[0] is not x or self._last[1] != version(x):
            y = self._transform.inputs(x)
            self._last = (x, version(x), y if self._quantizer is None else self._rounded(y))
        return self._last[2]

    def _rounded(self, y: Tensor) -> Tensor:
        assert self._quantizer is not None
        rounded, mask = self._quantizer(y), self._kept.mask
        return rounded if mask is None else torch.where(mask.view(*y.shape[:-1], 1), y, rounded)


class QuantizedLinear(nn.Module):
    """y = Q(x T) Q(W T^-T)^T + b; the bias is as it was.

    Args:
        linear: that it stands for.
        input: shared with the others that read it.
        weight: transformed and rounded [out, in].
    """

    def __init__(self, linear: nn.Linear, input: QuantizedInput, weight: Tensor) -> None:
        super().__init__()
        self.input = input
        self.register_buffer("weight", weight)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input(x), self.weight, self.bias)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Replacement:
    """What happens to one input and to the linear maps that read it.

    Args:
        input: of the maps.
        activations: how the input is rounded; None: not.
        transform: of the input before it is rounded.
        weights: of the maps, transformed and rounded [out, in], by name.
    """

    input: SharedInput
    activations: Quantizer | None
    transform: Transform
    weights: Mapping[str, Tensor]


@contextmanager
def quantized(model: nn.Module, replacements: Iterable[Replacement]) -> Iterator[Kept]:
    """A model with quantized linear maps inside the `with` block, and its own afterward.

    A map that has several names in the model is replaced under all of them.

    Args:
        model: that holds them.
        replacements: which, and how.
    """
    kept, own = Kept(), dict[str, nn.Linear]()
    names = defaultdict[nn.Module, list[str]](list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    try:
        for each in replacements:
            shared = QuantizedInput(each.activations, each.transform, kept)
            for first_name, linear in each.input.linears.items():
                stand_in = QuantizedLinear(linear, shared, each.weights[first_name])
                for name in names[linear]:
                    own[name] = linear
                    model.set_submodule(name, stand_in)
        yield kept
    finally:
        for name, linear in own.items():
            model.set_submodule(name, linear)


@torch.no_grad()
def rounded_weights(read: SharedInput, quantizer: Quantizer | None, transform: Transform) -> dict[str, Tensor]:
    """The weights of the maps that read an input, transformed and then rounded [out, in], by name."""
    weights = {name: transform.weights(linear.weight).detach() for name, linear in read.linears.items()}
    return weights if quantizer is None else {name: quantizer(weight) for name, weight in weights.items()}
