"""Which linear maps read the same input, and which modules are none."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.attention_gates import HeadwiseGate
from sinks.models.gated_norm import GatedNorm
from sinks.quantize.formats import Integer
from sinks.quantize.inputs import BlockOf, SharedInput, inputs_of, left_out
from sinks.quantize.linear import QuantizedLinear, Replacement, quantized, rounded_weights
from sinks.quantize.schemes import Quantizer
from sinks.quantize.transforms import NONE
from sinks.quantize.watch import watching
from tests.quantize.test_quantized_models import inputs, subject

TOKENS = torch.zeros(1, 8, dtype=torch.long)


class Layer(nn.Module):
    """Maps that read a tensor of 6 channels, each as a function says."""

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def read(self, x: Tensor, at: int) -> Tensor:
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.arange(6.0).expand(*tokens.shape, 6).contiguous() + 1
        return sum(m(self.read(x, at)) for at, m in enumerate(self.maps))  # type: ignore[return-value]


class InPlace(Layer):
    """The same memory, written to before every map but the first."""

    def read(self, x: Tensor, at: int) -> Tensor:
        return x if at == 0 else x.mul_(-0.3)


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def maps(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(6, 5) for _ in range(count)]


def replacement(of: SharedInput, activations: Quantizer | None = None, weights: Quantizer | None = None) -> Replacement:
    return Replacement(of, activations, NONE, rounded_weights(of, weights, NONE))


def found_in(layer: nn.Module) -> list[SharedInput]:
    return inputs_of(layer, [BlockOf(layer, None)], layer, TOKENS)


def test_maps_are_together_where_they_read_the_same_input() -> None:
    found = {each.name: set(each.linears) for each in inputs(subject(attention_gate=HeadwiseGate, norm=GatedNorm))}
    first = "decoder.blocks.0"
    assert {k: v for k, v in found.items() if "blocks.0" in k} == {
        "blocks.0.attention.in": {f"{first}.attention.{name}" for name in ("query", "key", "value")},
        "blocks.0.attention.out": {f"{first}.attention.out"},
        "blocks.0.feed_forward.in": {f"{first}.feed_forward.{name}" for name in ("gate", "up")},
        "blocks.0.feed_forward.out": {f"{first}.feed_forward.down"},
        f"{first}.attention.gate.projection": {f"{first}.attention.gate.projection"},
    } | {
        f"{first}.{norm}.norm.{name}": {f"{first}.{norm}.norm.{name}"}
        for norm in ("attention_norm", "feed_forward_norm")
        for name in ("down", "up")
    }


def test_an_input_that_is_written_to_in_between_is_another_one() -> None:
    assert [set(each.linears) for each in found_in(Layer(maps(2)))] == [{"maps.0", "maps.1"}]
    assert [set(each.linears) for each in found_in(InPlace(maps(2)))] == [{"maps.0"}, {"maps.1"}]


def test_what_was_rounded_is_not_used_for_an_input_that_was_written_to_since() -> None:
    """Both maps as readers of one input, as a caller might say who did not look."""
    layer, quantizer = InPlace(maps(2)), Quantizer(Integer(3))
    both = SharedInput("both", "feed_forward.in", {f"maps.{i}": m for i, m in enumerate(layer.maps)})  # type: ignore[misc]
    with torch.no_grad(), quantized(layer, [replacement(both, activations=quantizer)]):
        found = layer(TOKENS)
    x = torch.arange(6.0).expand(1, 8, 6) + 1
    with torch.no_grad():
        expected = layer.maps[0](quantizer(x)) + layer.maps[1](quantizer(x * -0.3))
    torch.testing.assert_close(found, expected)


def test_maps_with_a_forward_of_their_own_are_left_out_and_named() -> None:
    given = [nn.Linear(6, 5), Doubling(6, 5)]
    layer = Layer(given)
    (each,) = found_in(layer)
    assert set(each.linears) == {"maps.0"}
    assert left_out([each], [BlockOf(layer, None)]) == ["Doubling"]
    before = layer(TOKENS)
    with quantized(layer, [replacement(each)]):
        assert isinstance(layer.maps[0], QuantizedLinear)
        torch.testing.assert_close(layer(TOKENS), before)
    wrapped = nn.Linear(6, 5)
    wrapped.forward = lambda x: F.linear(x, wrapped.weight)  # type: ignore[method-assign]
    assert [set(each.linears) for each in found_in(Layer([wrapped, nn.Linear(6, 5)]))] == [{"maps.1"}]


def test_a_map_that_has_two_names_is_replaced_under_both() -> None:
    """As is one in a block that runs twice; with weights of 3 bits nothing else would be equal."""
    linear = nn.Linear(6, 6)
    layer, quantizer = Layer([linear, nn.Linear(6, 6), linear]), Quantizer(Integer(3))
    stack = nn.Sequential(layer, nn.Identity(), layer)
    (each,) = inputs_of(stack, [BlockOf(layer, None), BlockOf(layer, None)], layer, TOKENS)
    assert set(each.linears.values()) == {linear, layer.maps[1]}
    with quantized(stack, [replacement(each, weights=quantizer)]), torch.no_grad():
        assert layer.maps[0] is layer.maps[2] is stack[2].maps[0]
        found = layer(TOKENS)
    assert layer.maps[0] is layer.maps[2] is linear
    x = torch.arange(6.0).expand(1, 8, 6) + 1
    weights = [(quantizer(m.weight.detach()), m.bias) for m in layer.maps]  # type: ignore[arg-type, union-attr]
    torch.testing.assert_close(found, sum(F.linear(x, w, b) for w, b in weights).detach())  # type: ignore[union-attr]


def test_an_input_that_has_no_row_for_every_token_is_known() -> None:
    class Routed(Layer):
        def read(self, x: Tensor, at: int) -> Tensor:
            return x if at == 0 else x.flatten(0, 1)[:3]

        def forward(self, tokens: Tensor) -> Tensor:
            x = torch.ones(*tokens.shape, 6)
            for at, m in enumerate(self.maps):
                m(self.read(x, at))
            return x

    assert [each.per_token for each in found_in(Routed(maps(2)))] == [True, False]


def test_modules_that_are_no_linear_map_are_named() -> None:
    of = subject()
    found = inputs(of)
    assert left_out(found, of.blocks) == []
    assert left_out([each for each in found if each.kind != "attention.out"], of.blocks) == ["Linear"]
    with pytest.raises(UserError, match=r"has no nn\.Linear in its blocks"):
        inputs_of(of.model, [BlockOf(nn.LayerNorm(3), None)], of.logits, of.calibration[:1])


def test_watching_ends_with_the_block_also_after_an_error() -> None:
    layer, seen = Layer(maps(1)), list[Tensor]()
    with watching([(layer.maps[0], seen.append)]):
        layer(TOKENS)
        layer.maps[0](input=torch.zeros(1, 6))
    layer(TOKENS)
    with pytest.raises(RuntimeError), watching([(layer.maps[0], seen.append)]):
        layer.maps[0](torch.zeros(1, 7))
    layer(TOKENS)
    assert [x.shape for x in seen] == [(1, 8, 6), (1, 6), (1, 7)]
