"""The causal probes of SmolLM2-135M-Instruct, against numbers of another program.

It was a plain forward pass in torch, float32 on a CPU, with each edit written into it, on the same weights and text:
windows of 512 tokens of WikiText-2's validation set without BOS, 0-3 to calibrate and 4-11 to score; for single sites
0-1 and 2-3.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from sinks.observe.detection import Detection
from sinks.probes.attention import FIRST, AttentionSide, calibrate_attention
from sinks.probes.effects import windows
from sinks.probes.hooked_places import hooked_places
from sinks.probes.residual import SINK, calibrate, places_of, residual
from sinks.probes.scorer import Scorer
from sinks.quantize.pretrained import pretrained_subject
from sinks.quantize.subject import Subject
from sinks.stats.bootstrap import interval

ROOT = Path(__file__).parents[2]
TEXT = ROOT.parent / "shared/data/wikitext-2-valid.txt"
pytestmark = [
    pytest.mark.models,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not TEXT.is_file(), reason=f"there is no {TEXT}"),
]
BASE = 3.0410
RESIDUAL = {
    ("all", 0): {
        "direct": 14.05,
        "constant-direct": 0.785,
        "denominator": 3.343,
        "constant-denominator": 0.322,
        "mean": 1.181,
    },
    ("blocks", 2): {
        "direct": 10.06,
        "constant-direct": 0.318,
        "denominator": 5.84,
        "constant-denominator": 0.273,
        "mean": 0.516,
    },
}
# Direct, denominator, mean.
SITES = {
    "head.norm": (3.67, 0.47, 0.55),
    "blocks.24.feed_forward.norm": (0.016, 0.192, 0.006),
    "blocks.18.attention.norm": (0.227, 0.195, 0.006),
    "blocks.12.attention.norm": (0.013, 0.093, 0.004),
}
ATTENTION = {
    ("value", 0): 0.234,
    ("constant-rescaling", 0): 0.539,
    ("constant-contribution", 0): 0.103,
    ("masked", 12): 0.671,
}


@pytest.fixture(scope="module")
def smollm2() -> Subject:
    subject = pretrained_subject("smollm2", str(TEXT), 4, 8, 512, "none", torch.device("cpu"), False, ROOT / "data")
    return dataclasses.replace(subject, rows=subject.calibration, calibration=subject.rows)


def run(subject: Subject) -> None:
    for row in subject.calibration.split(1):
        subject.logits(row)


def wrong(found: float, golden: float) -> bool:
    """More than 2 % away, and more than half of the last digit that is known."""
    last_digit = 0.01 if golden in SITES["head.norm"] else 0.001
    return abs(found - golden) > max(0.02 * golden, 0.5 * last_digit)


def test_residual_side(smollm2: Subject) -> None:
    places = hooked_places(smollm2.model)
    found = residual(places.norms, calibrate(places.norms, lambda: run(smollm2)), 10.0, None, 0, 0, 8.0)
    sinks = found.dimensions[SINK]
    assert len(places.norms) == 61
    assert {norm.name for norm in places.norms} - sinks.keys() == {"blocks.0.attention.norm"}
    assert sinks["head.norm"] == [17, 199]
    scorer = Scorer(smollm2.logits, places.blocks, smollm2.rows, 1, [2])
    assert abs(scorer.base.mean().item() - BASE) < 0.002
    low_high = interval(windows(8, 511).sums(scorer.base), torch.full((8,), 511.0), 1)
    assert [round(low_high[name], 2) for name in ("low", "high")] == [2.94, 3.15]
    changes = {}
    for (where, layer), golden in RESIDUAL.items():
        norms = places_of(where, places.norms, layer)
        for edit, number in golden.items():
            with found.edited(edit, norms, "ordinary"):
                changes[where, edit] = (scorer.losses(layer) - scorer.base).mean().item(), number
                print(where, edit, *changes[where, edit], flush=True)
    assert [case for case in changes.items() if wrong(*case[1])] == []


def test_one_site_at_a_time(smollm2: Subject) -> None:
    few = dataclasses.replace(smollm2, rows=smollm2.calibration[2:], calibration=smollm2.calibration[:2])
    places = hooked_places(few.model)
    norms = [norm for norm in places.norms if norm.name in SITES]
    found = residual(norms, calibrate(norms, lambda: run(few)), 10.0, None, 0, 0, 8.0)
    scorer = Scorer(few.logits, places.blocks, few.rows, 1, [norm.layer for norm in norms])
    changes = {}
    for norm in norms:
        for edit, number in zip(("direct", "denominator", "mean"), SITES[norm.name], strict=True):
            with found.edited(edit, [norm], "ordinary"):
                changes[norm.name, edit] = (scorer.losses(norm.layer) - scorer.base).mean().item(), number
                print(norm.name, edit, *changes[norm.name, edit], flush=True)
    assert [case for case in changes.items() if wrong(*case[1])] == []


def test_attention_side(smollm2: Subject) -> None:
    places = hooked_places(smollm2.model)
    calibrations = calibrate_attention(places.attention, FIRST, lambda: run(smollm2), controls=())
    mass = torch.stack([calibrations[layer.name].mean_mass() for layer in places.attention])
    assert round(mass.mean().item(), 3) == 0.319
    assert round((mass > 0.3).double().mean().item(), 3) == 0.504
    side, detection = AttentionSide(places.attention, FIRST, calibrations, 0), Detection()

    def watch(batch: int) -> None:
        side.batch = batch
        detection.start_batch(smollm2.rows[batch : batch + 1, :-1])

    with side.finding(detection):
        scorer = Scorer(smollm2.logits, places.blocks, smollm2.rows, 1, [12], watch)
    assert abs(scorer.base.mean().item() - BASE) < 0.002
    changes = {}
    for (edit, layer), number in ATTENTION.items():
        with side.edited(edit, places.attention[layer:]):
            changes[edit] = (scorer.losses(layer) - scorer.base).mean().item(), number
            print(edit, *changes[edit], flush=True)
    assert [case for case in changes.items() if wrong(*case[1])] == []
