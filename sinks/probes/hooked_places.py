"""The places of a transformers causal LM, edited by hooks on its own, unedited code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinks.interop.adapter import Adapter
from sinks.interop.classify import AttentionParts, StreamNorm, parts_of
from sinks.interop.seam import AttentionCall, Seam, first_tensor
from sinks.models.attention_gates import LARGEST_LOGIT
from sinks.probes.places import (
    Attended,
    AttentionEdit,
    AttentionPlace,
    GateEdit,
    NormEdit,
    NormPlace,
    Places,
)


def hooked_places(model: PreTrainedModel) -> Places:
    """The places of a transformers causal LM; layers whose attention does not call the interface have none.

    Raises:
        UserError: if its blocks cannot be found.
    """
    parts = parts_of(model, Adapter())
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    norms: list[NormPlace] = []
    attention: list[AttentionPlace] = []
    for layer, block in enumerate(parts.blocks):
        for at, norm in block.norms.items():
            norms.append(_HookedNorm(f"blocks.{layer}.{at}", at.partition(".")[0], layer, norm, block.module))
        if block.attention is not None and block.attention.calls_interface:
            name, gated = f"blocks.{layer}.attention", block.attention.gate is not None
            attention.append(_HookedAttention(name, layer, gated, heads, block.attention, parts.seam))
    if parts.head_norm is not None:
        blocks = parts.blocks
        norms.append(_HookedNorm("head.norm", "head", len(blocks), parts.head_norm, blocks[-1].module))
    return Places([block.module for block in parts.blocks], norms, attention)


@dataclass
class _HookedNorm:
    name: str
    kind: str
    layer: int
    norm: StreamNorm
    block: nn.Module

    @contextmanager
    def edited(self, edit: NormEdit) -> Iterator[None]:
        module = self.norm.module if self.norm.gate is None else self.norm.gate.module
        shape = torch.Size()

        def keep_shape(block: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal shape
            shape = _first(args, kwargs).shape

        def replace(norm: nn.Module, args: Any, kwargs: Any, y: Tensor) -> Tensor:
            h = _first(args, kwargs)
            rows = shape if self.norm.flat else h.shape
            return edit(h.view(rows), y.view(rows), lambda x: norm.forward(x.view(h.shape)).view(rows)).view(y.shape)

        handles = [
            self.block.register_forward_pre_hook(keep_shape, with_kwargs=True),
            module.register_forward_hook(replace, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _HookedAttention:
    name: str
    layer: int
    gated: bool
    heads: int
    parts: AttentionParts
    seam: Seam

    @contextmanager
    def edited(self, edit: AttentionEdit) -> Iterator[None]:
        def replace(call: AttentionCall, out: Tensor) -> Tensor:
            new, rows = edit(_attended(call))
            return torch.where(rows.unsqueeze(-1), new.to(out.dtype), out)

        self.seam.open(self.name)
        self.seam.edit(self.parts.module, replace)
        try:
            yield
        finally:
            self.seam.edit(self.parts.module, None)
            self.seam.close(self.name)

    @contextmanager
    def gate_edited(self, edit: GateEdit) -> Iterator[None]:
        gate, weight = self.parts.gate, self.out_weight()
        assert gate is not None and weight is not None  # noqa: PT018
        width = weight.shape[1] // self.heads

        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            new = output.clone()
            activations = gate.read(new, self.heads, width)  # a view
            opened = edit(gate.values(output, self.heads, width)) / gate.limit
            activations.copy_(torch.logit(opened).clamp(-LARGEST_LOGIT, LARGEST_LOGIT))
            return new

        handle = gate.module.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def out_weight(self) -> Tensor | None:
        return None if self.parts.out_weight is None else self.parts.out_weight().detach()


def _attended(call: AttentionCall) -> Attended:
    weights = call.weights()
    values = call.v.to(weights.dtype).repeat_interleave(call.q.shape[1] // call.v.shape[1], dim=1)
    mass = torch.zeros_like(weights[..., 0]) if call.sink is None else (1 - weights.sum(-1)).clamp_min(0)
    return Attended(weights, values, mass, torch.zeros_like(values), row_normalized=True)


def _first(args: Any, kwargs: Any) -> Tensor:
    x = first_tensor(args, kwargs.get("hidden_states"), kwargs)
    assert x is not None
    return x
