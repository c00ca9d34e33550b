"""The places of the suite's own decoder, edited at its taps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sinks.models.attention import Attention
from sinks.models.attention_gates import NoGate
from sinks.models.decoder import Block, Decoder
from sinks.models.norms import NormSite
from sinks.models.taps import editing
from sinks.probes.places import (
    Attended,
    AttentionEdit,
    AttentionPlace,
    GateEdit,
    NormEdit,
    NormPlace,
    Places,
)


def own_places(decoder: Decoder) -> Places:
    """The places of a decoder; a block whose mixer computes something else than `Attention` has none of that kind."""
    blocks = [block for block in decoder.blocks if isinstance(block, Block)]
    norms: list[NormPlace] = []
    attention: list[AttentionPlace] = []
    for layer, block in enumerate(blocks):
        norms.append(_TappedNorm(block.attention_norm.site, "attention", layer, block.attention_norm))
        norms.append(_TappedNorm(block.feed_forward_norm.site, "feed_forward", layer, block.feed_forward_norm))
        mixer = block.attention
        if isinstance(mixer, Attention) and type(mixer).forward is Attention.forward:
            gated = not isinstance(mixer.gate, NoGate)
            attention.append(_TappedAttention(mixer.config.site, layer, gated, mixer))
    norms.append(_TappedNorm(decoder.head_norm.site, "head", len(blocks), decoder.head_norm))
    return Places(blocks, norms, attention)


@dataclass
class _TappedNorm:
    name: str
    kind: str
    layer: int
    site: NormSite

    @contextmanager
    def edited(self, edit: NormEdit) -> Iterator[None]:
        stream: list[Tensor] = []

        def keep(h: Tensor) -> Tensor:
            stream[:] = [h]
            return h

        def replace(y: Tensor) -> Tensor:
            return edit(stream.pop(), y, self.site.norm)

        with editing(self.site, {self.site.input.site: keep, self.site.output.site: replace}):
            yield


@dataclass
class _TappedAttention:
    name: str
    layer: int
    gated: bool
    module: Attention

    @contextmanager
    def edited(self, edit: AttentionEdit) -> Iterator[None]:
        module = self.module
        taps = {"q": module.query_tap, "k": module.key_tap, "v": module.value_tap, "gate": module.gate_tap}
        seen: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> Tensor:
            seen[name] = x
            return x

        def replace(x: Tensor) -> Tensor:
            gate, v = seen.pop("gate", None), seen.pop("v")
            new, rows = edit(_attended(module, seen.pop("q"), seen.pop("k"), v))
            new = module.exclusion(new, v)
            if gate is not None:
                new = module.gate.multiply(new, gate)
            replaced = rows.unsqueeze(-1).expand_as(new)
            return torch.where(_joined(replaced), _joined(new.to(x.dtype)), x)

        edits = {tap.site: lambda x, name=name: keep(name, x) for name, tap in taps.items()}
        with editing(module, {**edits, module.out_input.site: replace}):
            yield

    @contextmanager
    def gate_edited(self, edit: GateEdit) -> Iterator[None]:
        gate = self.module.gate

        def replace(activations: Tensor) -> Tensor:
            return gate.activations(edit(gate.values(activations))).to(activations.dtype)

        with editing(self.module, {self.module.gate_tap.site: replace}):
            yield

    def out_weight(self) -> Tensor | None:
        return self.module.out_weight


def _joined(heads: Tensor) -> Tensor:
    """[B, H, T, d] -> [B, T, H * d]."""
    return heads.transpose(1, 2).flatten(2)


def _attended(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    normalizer, values = module.normalizer, v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    weights = module.weights_of(q, k, v)
    mass, output = torch.zeros_like(weights[..., 0]), torch.zeros_like(values)
    if normalizer.learned_sinks:
        mass = (1 - weights.sum(-1)).clamp_min(0)
        output, _ = normalizer.attend(q, k, torch.zeros_like(v), None)
    return Attended(weights, values, mass, output, normalizer.row_normalized)
