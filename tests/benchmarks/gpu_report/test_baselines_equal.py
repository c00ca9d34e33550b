"""Baseline models compute what Hugging Face's Llama computes: logits, loss and a step's weights, by copied weights.

Tried with litgpt 0.5.13 and torchtitan 0.3.0 on torch 2.14.1 and transformers 5.23.0, November 2026.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu_report import baselines
from sinks.models.decoder import Architecture

pytest.importorskip("transformers", reason="the baselines are compared with Hugging Face's Llama")

VOCABULARY, CONTEXT = 32, 12
# Grouped queries, a head dimension of its own, an inner width that is not a multiple of anything.
SHAPE = Architecture(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_hidden=20, tied_embeddings=False)


def to_litgpt(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Hugging Face's weights by litgpt's names."""
    found = {
        "lm_head.weight": weights["lm_head.weight"],
        "transformer.wte.weight": weights["model.embed_tokens.weight"],
        "transformer.ln_f.weight": weights["model.norm.weight"],
    }
    for layer in range(SHAPE.n_layers):
        own, theirs = f"transformer.h.{layer}", f"model.layers.{layer}"
        projections = [weights[f"{theirs}.self_attn.{x}_proj.weight"] for x in "qkv"]
        found[f"{own}.attn.qkv.weight"] = torch.cat(projections)
        for name, other in {
            "norm_1": "input_layernorm",
            "attn.proj": "self_attn.o_proj",
            "norm_2": "post_attention_layernorm",
            "mlp.fc_1": "mlp.gate_proj",
            "mlp.fc_2": "mlp.up_proj",
            "mlp.proj": "mlp.down_proj",
        }.items():
            found[f"{own}.{name}.weight"] = weights[f"{theirs}.{other}.weight"]
    return found


def to_torchtitan(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Hugging Face's weights by torchtitan's own conversion, which also permutes the rotated channels."""
    from torchtitan.models.llama3 import Llama3StateDictAdapter

    return Llama3StateDictAdapter(model.config, None).from_hf(dict(weights))


CONVERSIONS = {"litgpt": to_litgpt, "torchtitan": to_torchtitan}


@pytest.fixture(params=CONVERSIONS)
def library(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed", exc_type=ImportError)
    return request.param


def test_logits_loss_and_a_step_equal_those_of_hugging_face(library: str) -> None:
    expected = baselines.llama(SHAPE, VOCABULARY, CONTEXT)
    for parameter in expected.model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    own = getattr(baselines, library)(SHAPE, VOCABULARY, CONTEXT)
    own.model.load_state_dict(CONVERSIONS[library](expected.model.state_dict(), own.model))
    rows = torch.randint(0, VOCABULARY, (2, CONTEXT + 1))
    torch.testing.assert_close(own.logits(rows[:, :-1]), expected.logits(rows[:, :-1]), rtol=1e-5, atol=1e-5)
    before = {name: weight.clone() for name, weight in own.model.state_dict().items()}
    for model in (own, expected):
        model.loss(rows).backward()
        torch.optim.SGD(model.model.parameters(), lr=0.1).step()
    after = CONVERSIONS[library](expected.model.state_dict(), own.model)
    for name, weight in own.model.state_dict().items():
        assert not torch.equal(weight, before[name])
        torch.testing.assert_close(weight, after[name], rtol=1e-5, atol=1e-5)


def test_tied_embeddings_are_one_parameter(library: str) -> None:
    tied = getattr(baselines, library)(replace(SHAPE, tied_embeddings=True), VOCABULARY, CONTEXT)
    assert sum(p.shape == (VOCABULARY, 16) for p in tied.model.parameters()) == 1
    tied.loss(torch.randint(0, VOCABULARY, (1, CONTEXT + 1))).backward()
