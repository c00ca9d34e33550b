"""Parameters and floating-point operations of a decoder, counted on its modules.

Counted are products with matrices: 2 operations per weight and token, forward; twice that backward. Attention's two
products, of queries with keys and of weights with values, are counted causally: a token of a text of T tokens meets
T / 2 keys on average, half of what a full matrix has. Elementwise work, norms, rotary angles and the softmax are left
out, as is whatever is computed a second time (activation checkpointing, fused attention's backward): these are the
operations of the model, by which MFU is defined (arXiv:2204.02311, appendix B).
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from torch import nn

from sinks.families import CausalLM
from sinks.models.attention import Attention
from sinks.models.decoder import Architecture, Decoder
from sinks.plan.kinds import parts

SCORES = "attention scores"


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token.

    Args:
        forward_by_kind: of the forward pass, by kind of part; attention's two products are `attention scores`.
    """

    forward_by_kind: dict[str, float]

    @property
    def forward(self) -> float:
        return sum(self.forward_by_kind.values())

    @property
    def per_token(self) -> float:
        """Forward and backward, which is two products for every one of the forward pass."""
        return 3 * self.forward


def parameters_by_kind(decoder: Decoder) -> dict[str, int]:
    """Number of parameters of each kind; a tied head has none of its own."""
    counts: Counter[str] = Counter()
    seen: set[nn.Parameter] = set()
    for kind, module in parts(decoder):
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                counts[kind] += parameter.numel()
    return dict(counts)


def decoder_flops(decoder: Decoder, tokens: int) -> Flops:
    """Operations per token of texts of a given length.

    Args:
        decoder: on any device; only widths are read.
        tokens: length T of a text.
    """
    counts: defaultdict[str, float] = defaultdict(float)
    for kind, module in parts(decoder):
        if isinstance(module, nn.Linear):
            counts[kind] += 2 * module.in_features * module.out_features
        elif isinstance(module, Attention):
            keys = (tokens + module.normalizer.first_token) / 2
            counts[SCORES] += 2 * 2 * module.shape.n_heads * module.shape.head_dim * keys
    return Flops(dict(counts))


def meta_decoder(model: CausalLM, architecture: Architecture | None = None) -> Decoder:
    """A decoder without memory: of the whole model, however it is sharded, or of other widths."""
    with torch.device("meta"):
        return Decoder(model.vocab_size, model.context_length, architecture or model.architecture, model.parts)


def model_flops(model: CausalLM) -> Flops:
    """Operations per token of a model at its context length."""
    return decoder_flops(meta_decoder(model), model.context_length)
