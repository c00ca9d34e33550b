"""Every pair of accumulators and statistics with random inputs: what must hold for all of them is tested once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sinks.stats import functional
from sinks.stats.accumulators import Accumulators

HEADS, KV_HEADS, HEAD_DIM, CHANNELS = 4, 2, 5, 11


@dataclass(frozen=True)
class Case:
    """Args:
    accumulators, statistics: the pair.
    per_sample: inputs [B, T] -> tensors whose first dimension is the sample.
    shared: further inputs that all samples share.
    channels: width of the last dimension, where it can be chosen.
    """

    accumulators: Callable[..., Accumulators]
    statistics: Callable[[Accumulators], dict[str, Tensor]]
    per_sample: Callable[[int, int, torch.Generator], tuple[Tensor, ...]]
    shared: tuple[Tensor, ...] = ()

    def inputs(self, batch: int, length: int, seed: int = 0) -> tuple[Tensor, ...]:
        return self.per_sample(batch, length, torch.Generator().manual_seed(seed)) + self.shared

    def part(self, inputs: tuple[Tensor, ...], samples: slice) -> tuple[Tensor, ...]:
        own = len(inputs) - len(self.shared)
        return tuple(x[samples] for x in inputs[:own]) + self.shared


def residual(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    h = torch.randn(batch, length, CHANNELS, generator=generator) * torch.linspace(0.5, 2, CHANNELS)
    h[..., 3] += 9.0
    return (h,)


def two_residuals(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    (h,) = residual(batch, length, generator)
    return h, torch.nn.functional.rms_norm(h, (CHANNELS,), GAIN)


def updates(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    (h,) = residual(batch, length, generator)
    return h, torch.randn(batch, length, CHANNELS, generator=generator)


def weights(batch: int, heads: int, length: int, generator: torch.Generator) -> Tensor:
    """Causal attention weights with a learned sink in the last column [B, H, T, T + 1], float64."""
    logits = 2 * torch.randn(batch, heads, length, length + 1, generator=generator, dtype=torch.float64)
    logits[..., 0] += torch.linspace(-2, 4, heads, dtype=torch.float64)[:, None]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    logits[..., :-1].masked_fill_(hidden, -torch.inf)
    return logits.softmax(-1)


def masses(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    a = weights(batch, HEADS, length, generator).float()
    return a[..., 0].contiguous(), a[..., -1].contiguous()


def key_masses(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (weights(batch, HEADS, length, generator)[..., :-1].sum(2).float(),)


def rows(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    a = weights(batch, HEADS, length, generator)
    entropy = -torch.special.xlogy(a, a).sum(-1).float()
    return entropy, torch.randn(batch, HEADS, length, generator=generator)


def values(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(batch, KV_HEADS, length, HEAD_DIM, generator=generator),)


def contributions(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    a = weights(batch, HEADS, length, generator).float()
    norms = torch.rand(batch, HEADS, length, generator=generator) + 0.1
    totals = (a[..., :-1] * norms[:, :, None]).sum(-1)
    return a[..., 0].contiguous(), norms, totals


def neighbors(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    a = weights(batch, HEADS, length, generator).float()
    return a.diagonal(dim1=2, dim2=3).contiguous(), torch.nn.functional.pad(
        a.diagonal(-1, 2, 3)[..., : length - 1], (1, 0)
    )


def route_inputs(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    a = weights(batch, HEADS, length, generator).float()
    w = torch.rand(batch, HEADS, length, generator=generator) * 2
    used, excess = ((a[..., :-1] * x[:, :, None]).sum(-1) for x in (w, (w - 1).clamp_min(0)))
    own, gain = a.diagonal(dim1=2, dim2=3).contiguous(), torch.rand(batch, HEADS, length, generator=generator)
    return used, excess, 1 - a[..., -1], a[..., 0].contiguous(), own, w, gain, a[..., -1].contiguous(), w.flip(-1)


def route_accumulators(*inputs: Tensor) -> Accumulators:
    return functional.route_accumulators(functional.RouteInputs(*(x.float() for x in inputs)))


def head_gates(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.rand(batch, HEADS, length, HEAD_DIM, generator=generator),)


def channel_gates(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.rand(batch, length, CHANNELS, generator=generator),)


def gated_outputs(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    y = torch.randn(batch, length, CHANNELS, generator=generator)
    noise = torch.randn(batch, length, CHANNELS, generator=generator)
    return torch.sigmoid(noise - y.abs()), y


def router_logits(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(batch, length, 6, generator=generator),)


def router_accumulators(logits: Tensor) -> Accumulators:
    return functional.router_accumulators(logits, logits.float().topk(2).indices)


GAIN = torch.linspace(0.2, 1.5, CHANNELS)
SINKS = torch.tensor([3, 7])
CASES = {
    "attention": Case(functional.attention_accumulators, functional.attention_statistics, masses),
    "key_mass": Case(functional.key_mass_accumulators, functional.key_mass_statistics, key_masses),
    "attention_row": Case(
        partial(functional.attention_row_accumulators, sinks=1),
        functional.attention_row_statistics,
        rows,
    ),
    "value": Case(functional.value_accumulators, functional.value_statistics, values),
    "contribution": Case(
        functional.contribution_accumulators,
        functional.contribution_statistics,
        contributions,
    ),
    "neighbors": Case(functional.neighbor_accumulators, functional.neighbor_statistics, neighbors),
    "routes": Case(route_accumulators, functional.route_statistics, route_inputs),
    "scale": Case(functional.scale_accumulators, functional.scale_statistics, two_residuals, (GAIN, SINKS)),
    "attention_gate": Case(
        functional.attention_gate_accumulators,
        functional.attention_gate_statistics,
        head_gates,
    ),
    "router": Case(router_accumulators, functional.router_statistics, router_logits),
    "residual": Case(functional.residual_accumulators, functional.residual_statistics, residual),
    "massive": Case(functional.massive_accumulators, functional.massive_statistics, residual),
    "update": Case(functional.update_accumulators, functional.update_statistics, updates),
    "kurtosis": Case(functional.kurtosis_accumulators, functional.kurtosis_statistics, residual),
    "energy": Case(functional.energy_accumulators, functional.energy_statistics, residual),
    "sink_dimension": Case(
        functional.sink_dimension_accumulators,
        functional.sink_dimension_statistics,
        residual,
        (SINKS,),
    ),
    "output_share": Case(
        functional.output_share_accumulators,
        functional.output_share_statistics,
        residual,
        (SINKS,),
    ),
    "bound": Case(functional.bound_accumulators, functional.bound_statistics, two_residuals, (GAIN, SINKS)),
    "norm_gate": Case(
        partial(functional.norm_gate_accumulators, channels=CHANNELS),
        functional.norm_gate_statistics,
        channel_gates,
    ),
    "gate_magnitude": Case(
        functional.gate_magnitude_accumulators,
        functional.gate_magnitude_statistics,
        gated_outputs,
    ),
}
