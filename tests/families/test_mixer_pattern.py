"""Layers that differ in their mixer."""

import dataclasses
from typing import Any

import pytest

from sinks.errors import UserError
from sinks.families import CausalLM, Gated
from sinks.models.attention import Attention
from sinks.models.attention_gates import ElementwiseGate, NoGate
from sinks.models.decoder import Block
from sinks.models.gated_delta_net import GatedDeltaNet
from tests.families.variants import SMALL, build

EVERY_FOURTH = ("mixer", "mixer", "mixer", "attention")


def mixers(n_layers: int, family: type[CausalLM] = CausalLM, **options: Any) -> list[Any]:
    architecture = dataclasses.replace(SMALL, n_layers=n_layers)
    decoder = family(11, 12, architecture=architecture, mixer=GatedDeltaNet, **options).meta_decoder()
    return [block.attention for block in decoder.blocks if isinstance(block, Block)]


def test_a_pattern_repeats_over_the_layers() -> None:
    found = mixers(9, mixer_pattern=EVERY_FOURTH)
    assert [type(mixer) is Attention for mixer in found] == [i % 4 == 3 for i in range(9)]
    assert all(type(mixer) in (Attention, GatedDeltaNet) for mixer in found)
    assert {type(mixer) for mixer in mixers(3)} == {GatedDeltaNet}


def test_the_gate_of_a_family_is_at_the_layers_with_attention() -> None:
    found = mixers(8, Gated, mixer_pattern=EVERY_FOURTH)
    assert [type(found[layer].gate) for layer in (3, 7)] == [ElementwiseGate] * 2
    assert {type(mixer.gate) for mixer in mixers(4, mixer_pattern=EVERY_FOURTH) if type(mixer) is Attention} == {NoGate}


def test_maps_are_those_of_the_layers_with_attention() -> None:
    model = build("hybrid", architecture=dataclasses.replace(SMALL, n_layers=5))
    tokens = model.decoder.embedding.weight.new_zeros(1, 7).long()  # type: ignore[union-attr]
    assert model.attention_maps(tokens).shape == (2, 4, 7, 7)


def test_what_would_have_no_effect_is_rejected() -> None:
    with pytest.raises(UserError, match=r"so model.attention_gate ElementwiseGate would have no effect"):
        mixers(3, attention_gate=ElementwiseGate)
    with pytest.raises(UserError, match=r"model.mixer_pattern is given, but model.mixer is not: give the mixer"):
        CausalLM(11, 12, architecture=SMALL, mixer_pattern=EVERY_FOURTH)


@pytest.mark.parametrize("missing", ["attention", "mixer"])
def test_a_pattern_longer_than_the_model_has_all_its_kinds(missing: str) -> None:
    other = "mixer" if missing == "attention" else "attention"
    with pytest.raises(
        UserError, match=f"mixer_pattern has '{missing}' after its first 2 entries, but .*n_layers is 2"
    ):
        mixers(2, mixer_pattern=(other, other, missing))
    assert len(mixers(2, mixer_pattern=(other, missing, missing))) == 2
