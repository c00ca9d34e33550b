"""What rounding does to a linear map: outliers that it meets, noise in the output, values that become zero."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sinks.quantize.linear import Kept, QuantizedInput, Replacement
from sinks.quantize.watch import watching


@dataclass(frozen=True)
class Noise:
    """Of all maps that read an input, on the inputs of the model as it is.

    Args:
        output: noise-to-signal ratio. That of a token is the energy of the error over that of the output; the mean
            over tokens, because a ratio of summed energies would be that of the massive tokens alone. A token whose
            output is zero has none; None if no token has one.
        input_underflow: fraction of the input's nonzero values, transformed, that become zero; None without any.
        weight_underflow: the same of the weights.
        peak, transformed_peak: largest |x| of a token over its rms, the mean over tokens that are not zero, of the
            input as it is and transformed; None if all are zero.
    """

    output: float | None
    input_underflow: float | None
    weight_underflow: float | None
    peak: float | None
    transformed_peak: float | None


class _Mean:
    """Of numbers that come in parts."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, numbers: Tensor) -> None:
        self._sum += numbers.double().sum().item()
        self._count += numbers.numel()

    @property
    def value(self) -> float | None:
        """None without any number."""
        return self._sum / self._count if self._count else None


def _peaks(x: Tensor) -> Tensor:
    rms = x.square().mean(-1).sqrt()
    return x.abs().amax(-1)[rms > 0] / rms[rms > 0]


class _Watched:
    """An input, and what was summed up of it."""

    def __init__(self, replacement: Replacement) -> None:
        linears, self.transform = replacement.input.linears, replacement.transform
        self.input = QuantizedInput(replacement.activations, replacement.transform, Kept())
        self.weight = torch.cat([linear.weight.detach() for linear in linears.values()])
        self.rounded = torch.cat([replacement.weights[name] for name in linears])
        self.ratios, self.peaks, self.transformed_peaks = _Mean(), _Mean(), _Mean()
        self.zeros, self.nonzeros = 0, 0

    def see(self, x: Tensor) -> None:
        transformed, rounded = self.transform.inputs(x), self.input(x)
        output = F.linear(x, self.weight)
        signal = output.square().sum(-1)
        ratios = (output - F.linear(rounded, self.rounded)).square().sum(-1)[signal > 0] / signal[signal > 0]
        self.ratios.add(ratios)
        self.peaks.add(_peaks(x))
        self.transformed_peaks.add(_peaks(transformed))
        self.zeros += int(((rounded == 0) & (transformed != 0)).sum())
        self.nonzeros += int((transformed != 0).sum())

    def noise(self) -> Noise:
        weight = self.transform.weights(self.weight)
        lost, all_of_it = int(((self.rounded == 0) & (weight != 0)).sum()), int((weight != 0).sum())
        return Noise(
            self.ratios.value,
            self.zeros / self.nonzeros if self.nonzeros else None,
            lost / all_of_it if all_of_it else None,
            self.peaks.value,
            self.transformed_peaks.value,
        )


@torch.no_grad()
def noise_of(
    replacements: Sequence[Replacement], run: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> dict[str, Noise]:
    """What rounding would do, by the inputs' names.

    Args:
        replacements: what would be done.
        run: runs the model over token ids [B, T].
        batches: of text.
    """
    watched = {each.input.name: _Watched(each) for each in replacements}
    with watching((each.input.first, watched[each.input.name].see) for each in replacements):
        for batch in batches:
            run(batch)
    return {name: each.noise() for name, each in watched.items()}


def decibels(noise: float) -> float | None:
    """Signal-to-noise ratio in dB of a noise-to-signal ratio; None where there is no noise."""
    return None if noise == 0 else -10 * math.log10(noise)
