"""Every variant that the suite ships can be probed on both sides."""

import math

import pytest
import torch

from sinks.models.attention import Attention
from sinks.models.attention_gates import NoGate
from sinks.probes.effects import windows
from sinks.probes.own_places import own_places
from sinks.probes.probe import EDITS, Options, Results, Text, probe
from sinks.probes.removals import EDITS as REMOVALS
from sinks.probes.removals import RESCALING
from tests.families.variants import VARIANTS, build


@pytest.mark.parametrize("name", VARIANTS)
def test_every_edit_of_a_variant(name: str) -> None:
    decoder = build(name).double().eval().decoder
    assert decoder is not None
    rows, calibration = torch.randint(0, 11, (2, 4, 13), generator=torch.Generator().manual_seed(0))
    text = Text(decoder, rows, calibration[:, :-1], windows(4, 12), str)
    results = Results({})
    probe(own_places(decoder), text, Options(dimensions=(3,), tokens=("all",), sinks="first", batch_size=4), results)
    for side in ("residual", "attention"):
        edits = results[side]["edits"]
        assert all(math.isfinite(each["change"]["mean"]) for each in edits.values())
        assert all(math.isfinite(effect["low"]) for effect in results[side]["roles"].popitem()[1]["effects"].values())
    mixer = decoder.blocks[0].attention
    assert isinstance(mixer, Attention)
    found = {key.split("|")[2]: each["change"]["mean"] for key, each in edits.items() if key.endswith("sink")}
    expected = {edit for edit in EDITS if edit in REMOVALS}
    expected |= {"learned-constant"} if mixer.normalizer.learned_sinks else set()
    expected |= set() if isinstance(mixer.gate, NoGate) else {"gate-mean", "gate-one"}
    assert set(found) == expected
    unchanged = set() if mixer.normalizer.row_normalized else set(RESCALING)
    unchanged |= {"gate-mean"} if name == "unconditional-gate" else set()
    assert {edit for edit, change in found.items() if abs(change) < 1e-12} == unchanged
