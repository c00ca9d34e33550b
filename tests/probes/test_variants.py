"""Every variant that the suite ships, and every family of transformers that is read, can be probed on both sides."""

import math

import pytest
import torch

from sinks.models.attention import Attention
from sinks.models.attention_gates import NoGate
from sinks.probes.effects import windows
from sinks.probes.hooked_places import hooked_places
from sinks.probes.own_places import own_places
from sinks.probes.probe import EDITS, Options, Results, Text, probe
from sinks.probes.removals import EDITS as REMOVALS
from sinks.probes.removals import RESCALING
from tests.families.variants import ATTENTION
from tests.families.variants import build as build_variant
from tests.interop.families import SUPPORTED, build, tokens


@pytest.mark.parametrize("name", ATTENTION)
def test_every_edit_of_a_variant(name: str) -> None:
    decoder = build_variant(name).double().eval().decoder
    assert decoder is not None
    rows, calibration = torch.randint(0, 11, (2, 4, 13), generator=torch.Generator().manual_seed(0))
    text = Text(decoder, rows, calibration[:, :-1], windows(4, 12), str)
    results = Results({})
    probe(own_places(decoder), text, Options(dimensions=(3,), tokens=("all",), sinks="first", batch_size=4), results)
    for side in ("residual", "attention"):
        edits = results[side]["edits"]
        assert all(math.isfinite(each["change"]["mean"]) for each in edits.values())
        assert all(math.isfinite(effect["low"]) for effect in results[side]["roles"].popitem()[1]["effects"].values())
    mixer = next(module for module in decoder.modules() if isinstance(module, Attention))
    found = {key.split("|")[2]: each["change"]["mean"] for key, each in edits.items() if key.endswith("sink")}
    expected = {edit for edit in EDITS if edit in REMOVALS}
    expected |= {"learned-constant"} if mixer.normalizer.learned_sinks else set()
    expected |= set() if isinstance(mixer.gate, NoGate) else {"gate-mean", "gate-one"}
    assert set(found) == expected
    unchanged = set() if mixer.normalizer.row_normalized else set(RESCALING)
    unchanged |= {"gate-mean"} if name == "unconditional-gate" else set()
    assert {edit for edit, change in found.items() if abs(change) < 1e-12} == unchanged


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_edit_of_a_family(name: str) -> None:
    model = build(name)
    places = hooked_places(model)
    rows, calibration = tokens(6, 13).split(3)
    text = Text(lambda ids: model(ids, use_cache=False).logits, rows, calibration[:, :-1], windows(3, 12), str)
    results = Results({})
    with torch.no_grad():
        before = model(rows, use_cache=False).logits
    options = Options(dimensions=(3,), tokens=("all",), sinks="first", batch_size=3, where=("each",), controls=0)
    probe(places, text, options, results)
    changes = {
        side: {key: abs(each["change"]["mean"]) for key, each in results[side]["edits"].items()} for side in results
    }
    assert len(changes["residual"]) == 7 * len(places.norms)
    assert len(places.norms) == 1 if name.startswith("OLMo") else len(places.norms) > 4  # the others read updates
    assert all(change > 0 for key, change in changes["residual"].items() if "|direct|" in key)
    assert {key.split("|")[2] for key in changes["attention"]} >= {*REMOVALS}
    assert all(0 < change < math.inf for change in changes["attention"].values())
    with torch.no_grad():
        assert torch.equal(model(rows, use_cache=False).logits, before)
