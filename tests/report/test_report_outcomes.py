"""Verdicts are computed by the printed rules, and nothing is claimed where nothing can be."""

from dataclasses import replace
from pathlib import Path

import pytest

from sinks.report import load_ablation
from sinks.report.ablation import Ablation, Variant
from sinks.report.claims import claims
from sinks.report.outcomes import no_sink, outcome
from tests.report.synthetic import BACKCOPY, Levels, write_ablation


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    return load_ablation(write_ablation(tmp_path_factory.mktemp("backcopy"), BACKCOPY, statistics=False))


def variant(ablation: Ablation, name: str) -> Variant:
    return next(v for v in ablation.variants if v.name == name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", ""),
        ("gated-attention", "as the paper expects"),
        ("learnable-sink", "as the paper expects"),
        ("gated-norm", "as the paper expects"),
        ("preaffine", "as the paper expects"),
        ("clip-input", "as the paper expects"),  # R falls, and the loss is 0.002 +- 0.001 higher
        ("dyt", "in part"),  # the loss is higher, but R falls only from 12.1 to 10.9
        ("clip-1000", "not shown"),  # clips nothing
        ("gate-and-gated-norm", "in part"),  # first-token mass falls, but by no more than a third: 0.86 to 0.64
    ],
)
def test_outcome_of_each_variant(ablation: Ablation, name: str, expected: str) -> None:
    assert outcome(ablation, variant(ablation, name))[0] == expected


@pytest.mark.parametrize(
    ("name", "mechanisms"),
    [
        ("gated-attention", {"gated"}),
        ("sigmoid-attention", {"unnormalised"}),
        ("learnable-sink", {"absorbed"}),
        ("preaffine", {"absorbed"}),
        ("clip-input", {"clipped"}),
        ("dyt", {"unnormalised"}),
        ("baseline", set()),
    ],
)
def test_mechanism_is_read_from_summary_and_name(ablation: Ablation, name: str, mechanisms: set[str]) -> None:
    assert variant(ablation, name).mechanisms == mechanisms


def test_every_claim_has_a_verdict(ablation: Ablation) -> None:
    found = {claim.claim.split(" (")[0]: claim for claim in claims(ablation)}
    assert found["Without the residual's normaliser the model is worse"].verdict == "supports"
    assert found["Without the attention's normaliser the model is worse"].verdict == "contradicts"
    assert found["Sinks rescale more than they contribute"].verdict == "supports"
    assert "cannot show" in found["Sinks rescale more than they contribute"].evidence
    assert found["Each side's fixes act on their own sink only"].verdict == "supports"
    together = found["Both gates together replace both sinks"]
    assert together.verdict == "mixed"
    assert "surprise" in together.evidence
    assert "0.64" in together.evidence
    assert "0.09" in together.evidence
    assert found["Without outliers, quantisation to few bits costs less"].verdict == "cannot show"
    assert {claim.key for claim in claims(ablation)} == {"C1", "C1b", "C2", "C3", "C4", "C5"}


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    ablation = load_ablation(write_ablation(tmp_path, BACKCOPY, seeds=(0,), statistics=False))
    assert outcome(ablation, variant(ablation, "gated-attention")) == ("not shown", "one seed has no spread")
    assert "supports" not in {claim.verdict for claim in claims(ablation) if claim.key in ("C1", "C3", "C4")}


def test_without_a_baseline_nothing_is_shown(tmp_path: Path) -> None:
    rest = {name: levels for name, levels in BACKCOPY.items() if name != "baseline"}
    ablation = load_ablation(write_ablation(tmp_path, rest, statistics=False))
    assert ablation.baseline is None
    assert outcome(ablation, variant(ablation, "gated-norm")) == ("not shown", "no baseline")
    assert {claim.verdict for claim in claims(ablation)} == {"cannot show"}


def test_a_baseline_without_sinks_says_so(tmp_path: Path) -> None:
    flat = {name: replace(levels, first=0.02, score=2.0, spread=0.001) for name, levels in BACKCOPY.items()}
    ablation = load_ablation(write_ablation(tmp_path, flat, statistics=False))
    sentence = no_sink(ablation)
    assert sentence is not None
    assert "No attention sink (first-token mass 0.02) and no residual sink (R 2.0) formed" in sentence
    assert "1 to 2 billion" in sentence
    assert outcome(ablation, variant(ablation, "gated-attention"))[0] == "not shown"
    verdicts = {claim.verdict for claim in claims(ablation) if claim.key in ("C2", "C3", "C4")}
    assert verdicts == {"cannot show"}


def test_a_sink_on_one_side_only(tmp_path: Path) -> None:
    only_attention = {name: replace(levels, score=2.0) for name, levels in BACKCOPY.items()}
    ablation = load_ablation(write_ablation(tmp_path, only_attention, statistics=False))
    sentence = no_sink(ablation)
    assert sentence is not None
    assert sentence.startswith("No residual sink (R 2.0) formed")


def test_a_fix_that_moves_the_other_sink_too_is_contrary(tmp_path: Path) -> None:
    variants = {"baseline": BACKCOPY["baseline"], "preaffine": replace(BACKCOPY["preaffine"], first=0.2)}
    ablation = load_ablation(write_ablation(tmp_path, variants, statistics=False))
    assert outcome(ablation, variant(ablation, "preaffine")) == ("contrary", "first-token mass falls")


def test_a_clip_that_costs_nothing_is_contrary(tmp_path: Path) -> None:
    variants = {
        "baseline": BACKCOPY["baseline"],
        "clip-input": replace(BACKCOPY["clip-input"], loss=1.540, spread=0.03),
    }
    ablation = load_ablation(write_ablation(tmp_path, variants, statistics=False))
    assert outcome(ablation, variant(ablation, "clip-input")) == ("contrary", "loss within noise")


def test_a_diverged_normaliser_free_model_supports_the_claim(tmp_path: Path) -> None:
    variants = {"baseline": BACKCOPY["baseline"], "dyt": Levels(side="residual", diverged=True)}
    ablation = load_ablation(write_ablation(tmp_path, variants, statistics=False))
    claim = claims(ablation)[0]
    assert claim.verdict == "supports"
    assert "diverged" in claim.evidence
    assert outcome(ablation, variant(ablation, "dyt")) == ("as the paper expects", "every run diverged")


def test_big_models_get_no_sentence_about_small_ones(tmp_path: Path) -> None:
    ablation = load_ablation(write_ablation(tmp_path, {"baseline": BACKCOPY["baseline"]}, statistics=False))
    assert "bias channel" in next(c for c in claims(ablation) if c.key == "C2").evidence
    for run in ablation.runs:
        run.folder.finish(dict(run.summary) | {"parameters": 2_000_000_000})
    evidence = next(c for c in claims(load_ablation(tmp_path)) if c.key == "C2").evidence
    assert "bias channel" not in evidence
    assert "cannot show" in evidence
