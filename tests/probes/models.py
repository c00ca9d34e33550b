"""Small models in float64 whose streams have a sink, and text for them."""

from typing import Any

import torch
from torch import Tensor

from sinks.families import CausalLM
from sinks.models.decoder import Architecture, Decoder
from tests.interop import families

VOCABULARY, LENGTH = 40, 12
SMALL = Architecture(
    d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, ffn_hidden=24, init_std=0.3, position="none"
)
SINK = (3, 7)  # dimensions that are large in every token's embedding


def decoder(**parts: Any) -> Decoder:
    """A random decoder with two sink dimensions and a massive token 0."""
    torch.manual_seed(0)
    model = CausalLM(VOCABULARY, LENGTH, SMALL, **parts).eval()
    model.configure_model()
    model = model.double()
    assert model.decoder is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        weight = model.decoder.embedding.weight
        weight.normal_(0, 0.3, generator=generator)
        weight[:, list(SINK)] = 6 + torch.randn(VOCABULARY, len(SINK), generator=generator, dtype=weight.dtype)
        weight[0] *= 20
    return model.decoder


def llama(name: str = "Llama", **options: Any) -> Any:
    """A random transformers model with the same sink dimensions and massive token."""
    model = families.build(name, **options).double()
    model.set_experts_implementation("eager")  # the other has no float64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:, list(SINK)] = 6 + torch.randn(len(weight), len(SINK), generator=generator, dtype=weight.dtype)
        weight[0] *= 20
    return model


class WithGate(torch.nn.Module):
    """A norm and a gate that reads what the norm makes."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.values = torch.nn.Sequential(torch.nn.Linear(32, 32, dtype=torch.float64), torch.nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y * self.values(y)


def gated_llama() -> Any:
    """A llama whose norms before attention have gates."""
    model = llama()
    for layer in model.model.layers:
        layer.input_layernorm = WithGate(layer.input_layernorm)
    return model


def rows(count: int = 4, length: int = LENGTH + 1, seed: int = 2) -> Tensor:
    """Random ids, with the massive token inside one row and at the start of another."""
    found = torch.randint(1, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))

    found[0, 5] = found[1, 0] = 0
    return found
