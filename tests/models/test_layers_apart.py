"""What a layer's attention is given: its window, its positions, its biases, the scale of its logits."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from sinks.checks import check
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention import Attention
from sinks.models.decoder import Architecture, Block, LayerOptions
from sinks.models.normalizers import KeyValueBias, OffByOne, Sigmoid, Softmax
from sinks.models.positions import Rotary
from tests.families.variants import SMALL

LENGTH, WINDOW = 12, 3


def attentions(**changes: Any) -> list[Attention]:
    parts = {name: changes.pop(name) for name in ("normalizer",) if name in changes}
    torch.manual_seed(0)
    model = CausalLM(11, LENGTH, architecture=dataclasses.replace(SMALL, **changes), **parts)
    model.configure_model()
    assert model.decoder is not None
    found = [block.attention for block in model.decoder.blocks if isinstance(block, Block)]
    assert all(isinstance(attention, Attention) for attention in found)
    return found  # type: ignore[return-value]


def dense(layer: Attention, x: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    """Weights [B, H, T, T] of softmax attention, by torch alone."""
    q, k, _ = layer.project(x)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    seen = (key <= query) & (query - key < (window or LENGTH))
    return (scale * q @ k.mT).masked_fill(~seen, -math.inf).softmax(-1)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("window", [None, WINDOW])
@torch.no_grad()
def test_window_and_scale_are_those_of_dense_softmax(window: int | None, scale: float | None) -> None:
    layer = attentions(layer_pattern=(LayerOptions(window),), attention_scale=scale)[0].double()
    x = torch.randn(2, LENGTH, 16, dtype=torch.float64)
    torch.testing.assert_close(layer.weights(x), dense(layer, x, scale or 6**-0.5, window))


def test_a_pattern_repeats_over_the_layers() -> None:
    pattern = (LayerOptions(WINDOW), LayerOptions(), LayerOptions(5, rope=False))
    layers = attentions(n_layers=5, layer_pattern=pattern)
    assert [layer.config.window for layer in layers] == [WINDOW, None, 5, WINDOW, None]
    assert [isinstance(layer.rotary, Rotary) for layer in layers] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("bias", "expected"),
    [(False, "000"), (True, "111"), ("qkv", "100"), ("attention", "110"), ("feed_forward", "001")],
)
def test_biases_are_apart(bias: Any, expected: str) -> None:
    model = CausalLM(11, LENGTH, architecture=dataclasses.replace(SMALL, bias=bias)).meta_decoder()
    names = {name for name, _ in model.named_parameters() if name.startswith("blocks.0") and name.endswith("bias")}
    attention = {f"blocks.0.attention.{name}.bias" for name in ("query", "key", "value")}
    feed_forward = {f"blocks.0.feed_forward.{name}.bias" for name in ("gate", "up", "down")}
    groups = (attention, {"blocks.0.attention.out.bias"}, feed_forward)
    assert names == set().union(*(group for group, there in zip(groups, expected, strict=True) if there == "1"))


def test_norms_of_queries_and_keys_have_an_eps() -> None:
    layer = attentions(qk_norm=True, qk_norm_eps=0.5)[0]
    assert layer.query_norm.eps == layer.key_norm.eps == 0.5


@pytest.mark.parametrize("tokens", [2, WINDOW, 4, LENGTH])
def test_a_window_costs_fewer_operations(tokens: int) -> None:
    """Keys of all queries, in continuous time: the area of the band below the diagonal."""
    config = attentions(layer_pattern=(LayerOptions(WINDOW),))[0].config
    window = min(WINDOW, tokens)
    area = window**2 / 2 + (tokens - window) * window
    assert Softmax(config).flops_per_token(tokens) == pytest.approx(4 * 4 * 6 * area / tokens)
    assert OffByOne(attentions()[0].config).flops_per_token(tokens) == 4 * 4 * 6 * tokens / 2


def test_a_learned_key_and_a_window_exclude_each_other() -> None:
    with pytest.raises(UserError, match="a window of 3 keys hides"):
        attentions(normalizer=KeyValueBias, layer_pattern=(LayerOptions(WINDOW),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_scale": 0.0}, "architecture.attention_scale is 0.0"),
        ({"qk_norm_eps": -1.0}, "architecture.qk_norm_eps is -1.0"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Architecture(**changes)
    with pytest.raises(UserError, match="window is 0"):
        LayerOptions(0)


@pytest.mark.parametrize("normalizer", [Softmax, Sigmoid, KeyValueBias])
def test_properties_of_every_variant_hold(normalizer: Any) -> None:
    window = None if normalizer is KeyValueBias else WINDOW
    architecture = dataclasses.replace(
        SMALL, layer_pattern=(LayerOptions(window), LayerOptions(rope=False)), attention_scale=0.3, bias="attention",
        qk_norm=True, qk_norm_eps=1e-3, rope_fraction=0.7,
    )  # fmt: skip
    lines = check(lambda: CausalLM(11, LENGTH, architecture=architecture, normalizer=normalizer))
    assert [str(line) for line in lines if line.result == "failed"] == []
