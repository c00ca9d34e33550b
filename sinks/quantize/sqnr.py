"""How much of a linear map's output is noise once its input and its weight are rounded."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.quantize.linear import Kept, QuantizedInput, Replacement
from sinks.quantize.watch import See, watching


@torch.no_grad()
def output_noise(
    replacements: Sequence[Replacement], run: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> dict[str, float]:
    """Noise-to-signal ratio of the outputs, by the inputs' names, on the inputs of the model as it is.

    That of a token is the energy of the error over that of the output, of all maps that read the input; the mean over
    tokens is returned. A ratio of summed energies would be that of the massive tokens alone. A token whose output is
    zero has none, and an input is absent if no token has one.

    Args:
        replacements: what would be done.
        run: runs the model over token ids [B, T].
        batches: of text.
    """
    totals: dict[str, float] = {}
    counts = Counter[str]()

    def watcher(each: Replacement) -> See:
        weight = torch.cat([linear.weight.detach() for linear in each.input.linears.values()])
        rounded = torch.cat([each.weights[name] for name in each.input.linears])
        return partial(see, each.input.name, QuantizedInput(each.activations, each.transform, Kept()), weight, rounded)

    def see(name: str, shared: QuantizedInput, weight: Tensor, rounded: Tensor, x: Tensor) -> None:
        output = F.linear(x, weight)
        signal = output.square().sum(-1)
        ratios = (output - F.linear(shared(x), rounded)).square().sum(-1)[signal > 0] / signal[signal > 0]
        totals[name] = totals.get(name, 0.0) + ratios.double().sum().item()
        counts[name] += ratios.numel()

    with watching((each.input.first, watcher(each)) for each in replacements):
        for batch in batches:
            run(batch)
    return {name: total / counts[name] for name, total in totals.items() if counts[name]}


def decibels(noise: float) -> float | None:
    """Signal-to-noise ratio in dB of a noise-to-signal ratio; None where there is no noise."""
    return None if noise == 0 else -10 * math.log10(noise)
