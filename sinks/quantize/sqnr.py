"""How much of a linear map's output is noise once its input and its weight are rounded."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.quantize.linear import Kept, QuantizedInput, Replacement, rounded_weight


@torch.no_grad()
def output_noise(
    replacements: Sequence[Replacement], run: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> dict[str, float]:
    """Noise-to-signal ratio of the outputs, by the readers' names, on the inputs of the model as it is.

    That of a token is the energy of the error over that of the output, of all maps that read the input; the mean over
    tokens is returned. A ratio of summed energies would be that of the massive tokens alone.

    Args:
        replacements: what would be done.
        run: runs the model over token ids [B, T].
        batches: of text.
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)

    def watch(each: Replacement) -> Any:
        linears = list(each.readers.linears.values())
        weight = torch.cat([linear.weight.detach() for linear in linears])
        rounded = torch.cat([rounded_weight(linear, each) for linear in linears])
        shared = QuantizedInput(each.scheme, each.transform, Kept())

        def see(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2)
            output = F.linear(x, weight)
            noise = (output - F.linear(shared(x), rounded)).square().sum(-1) / output.square().sum(-1)
            name = each.readers.name
            totals[name] = totals.get(name, 0) + noise.double().sum()
            counts[name] += len(x)

        return linears[0].register_forward_pre_hook(see)

    handles = [watch(each) for each in replacements]
    try:
        for batch in batches:
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.item() / counts[name] for name, total in totals.items()}


def decibels(noise: float) -> float | None:
    """Signal-to-noise ratio in dB of a noise-to-signal ratio; None where there is no noise."""
    return None if noise == 0 else -10 * math.log10(noise)
