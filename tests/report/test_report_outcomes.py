"""Outcomes follow the printed rules, and nothing is claimed without evidence."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinks.cli import main
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.report import compare, load_ablation
from sinks.report.ablation import Ablation, Run, Variant, stated
from sinks.report.claims import claims
from sinks.report.loss import judge_losses
from sinks.report.outcomes import (
    ATTENTION,
    FIX,
    HARM,
    LOSS,
    RESIDUAL,
    RULES,
    Change,
    Comparison,
    VariantResult,
    expectation,
    judge,
    mark,
    no_sink,
)
from sinks.report.render import contents
from sinks.report.spread import Spread
from sinks.report.tables import remark
from sinks.stats.paired import Paired, smallest_effect
from tests.report.synthetic import BACKCOPY, Levels, write_ablation, write_run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def compared(root: Path) -> Comparison:
    return compare(load_ablation(root))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compared(write_ablation(tmp_path_factory.mktemp("backcopy"), BACKCOPY, statistics=False))


def outcome(comparison: Comparison, name: str) -> tuple[str, str]:
    result = next(r for r in comparison.results if r.variant.name == name)
    return result.outcome, result.reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", ""),
        ("gated-attention", "as the paper expects"),
        ("learnable-sink", "as the paper expects"),
        ("gated-norm", "as the paper expects"),
        ("preaffine", "as the paper expects"),
        ("clip-input", "not shown"),  # R falls; the loss is 0.002 higher, which three seeds cannot see
        ("dyt", "in part"),  # the loss is higher, but R falls only from 12.1 to 10.9
        ("clip-1000", "no effect"),  # clips nothing
        ("gate-and-gated-norm", "in part"),  # first-token mass falls, but by no more than a third: 0.86 to 0.64
    ],
)
def test_outcome_of_each_variant(comparison: Comparison, name: str, expected: str) -> None:
    assert outcome(comparison, name)[0] == expected


def runs(count: int, **summary: float) -> list[Run]:
    return [Run(RunFolder("nowhere"), seed, summary) for seed in range(count)]


BASELINE = VariantResult(Variant("baseline", "Baseline", "Baseline", runs=runs(3)))
STILL: dict[str, Change] = {ATTENTION: "stays", RESIDUAL: "stays", LOSS: "cannot tell"}


def result(side: str = "residual", mechanism: str = "gated", finished: int = 3, **fields: Any) -> VariantResult:
    variant: Any = Variant("v", "V", "V", side, runs=runs(finished), mechanisms=frozenset({mechanism}))
    return VariantResult(**{"variant": variant, "baseline": BASELINE, "changes": STILL, "expected": FIX[side]} | fields)


DIVERGED = Variant("v", "V", "V", "residual", diverged=runs(3), mechanisms=frozenset({"unknown"}))
NO_CLIP = {"clipped_share": Spread(0.0, 0.0, 0.0, 3)}


@pytest.mark.parametrize(
    ("rule", "case"),
    [
        (0, result(expected={}, finished=0)),
        (1, result(finished=0, baseline=None)),
        (2, result(variant=DIVERGED, expected=HARM, baseline=None)),
        (3, result(variant=DIVERGED, baseline=None)),
        (4, result(spreads=NO_CLIP, baseline=None)),
        (5, result(finished=1, baseline=None)),
        (6, result(mechanism="unknown", finished=1)),
        (6, result(baseline=replace(BASELINE, variant=replace(BASELINE.variant, runs=runs(1))))),
        (7, result(mechanism="unknown")),
        (7, result("both", "unknown")),
    ],
)
def test_the_first_rule_that_applies_decides(rule: int, case: VariantResult) -> None:
    assert [r.applies(case) for r in RULES[: rule + 1]] == [False] * rule + [True]
    assert judge(case) == (RULES[rule].outcome, RULES[rule].reason)


def test_a_clip_of_few_values_or_with_another_loss_has_an_effect() -> None:
    """One massive activation of a row of 2048 tokens and 2048 channels is 2.4e-7 of its values."""
    few = {"clipped_share": Spread(2.4e-7, 2.4e-7, 2.4e-7, 3)}
    assert not result(spreads=few, changes=STILL).no_effect
    assert result(spreads=NO_CLIP, changes=STILL).no_effect
    assert not result(spreads=NO_CLIP, changes=STILL | {LOSS: "higher"}).no_effect


@pytest.mark.parametrize(
    ("found", "expected", "marked"),
    [
        ("falls", "falls", "as expected"),
        ("falls a little", "falls", "a little"),
        ("rises a little", "falls", "elsewhere"),
        ("stays", "falls", "elsewhere"),
        ("rises", "falls", "elsewhere"),
        ("stays", "stays", "as expected"),
        ("falls a little", "stays", "as expected"),
        ("rises a little", "stays", "as expected"),
        ("falls", "stays", "elsewhere"),
        ("higher", "higher", "as expected"),
        ("lower", "higher", "elsewhere"),
        ("cannot tell", "higher", "unclear"),
        *((found, "stays", "unclear") for found in ("unclear", "one seed", "no sink", "not measured")),
    ],
)
def test_mark(found: Change, expected: Change, marked: str) -> None:
    assert mark(found, expected) == marked


@pytest.mark.parametrize(
    ("side", "attention", "residual", "judged"),
    [
        ("residual", "stays", "falls", ("as the paper expects", "first-token mass stays, R falls")),
        ("residual", "falls a little", "falls", ("as the paper expects", "first-token mass falls a little, R falls")),
        ("residual", "stays", "falls a little", ("in part", "first-token mass stays, R falls a little")),
        ("attention", "unclear", "rises", ("contrary", "R rises")),
        ("attention", "falls a little", "one seed", ("not shown", "R unclear")),
        ("both", "no sink", "not measured", ("not shown", "no first-token mass to lose, R not measured")),
    ],
)
def test_the_worst_mark_decides(side: str, attention: Change, residual: Change, judged: tuple[str, str]) -> None:
    assert judge(result(side, changes=STILL | {ATTENTION: attention, RESIDUAL: residual})) == judged


@pytest.mark.parametrize(
    ("side", "mechanisms", "expected"),
    [
        ("residual", {"unnormalized"}, HARM),
        ("both", {"clipped"}, HARM),
        ("residual", {"unnormalized", "gated"}, FIX["residual"]),
        ("attention", {"unnormalized"}, FIX["attention"]),
        ("residual", {"absorbed"}, FIX["residual"]),
        ("none", {"gated"}, {}),
        ("both", {"gated", "projected"}, {}),
        ("unknown", {"clipped"}, {}),
    ],
)
def test_expectation_by_side_and_mechanism(side: Any, mechanisms: Any, expected: dict[str, Change]) -> None:
    assert expectation(Variant("v", "V", "V", side, mechanisms=frozenset(mechanisms))) == expected


@pytest.mark.parametrize(
    ("given", "mechanisms"),
    [
        ({}, None),
        ({"mechanism": "none"}, {"none"}),
        ({"mechanism": "gated"}, {"gated"}),
        ({"mechanism": ["absorbed", "gated"]}, {"absorbed", "gated"}),
        ({"mechanism": "unnormalised"}, {"unnormalized"}),
    ],
)
def test_the_mechanism_is_stated(given: dict[str, Any], mechanisms: set[str] | None) -> None:
    assert stated("ablation.yaml", "v", given) == ("unknown", mechanisms)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mechanism": "gate"}, r"a.yaml: variant v has mechanism 'gate': give one or a list of none, unnormalized, "),
        ({"mechanism": ["gated", 3]}, r"has mechanism \['gated', 3\]: give"),
        ({"mechanism": None}, "has mechanism None: give"),
        ({"mechanism": []}, r"has mechanism \[\]: give"),
        ({"side": "left"}, "a.yaml: variant v has side 'left': give one of none, attention, "),
        ({"side": ["left"]}, "has side"),
    ],
)
def test_an_unknown_value_is_a_one_line_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        stated("a.yaml", "v", given)
    assert "\n" not in str(error.value)


def test_the_grid_rejects_an_unknown_mechanism(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXPERIMENTS.parent)
    file = tmp_path / "ablation.yaml"
    file.write_text((EXPERIMENTS / "ablations/text.yaml").read_text().replace("mechanism: gated", "mechanism: gate"))
    assert main(["grid", str(file), f"--runs={tmp_path}/runs"]) == 2
    error = capsys.readouterr().err
    assert f"{file}: variant gated-attention has mechanism 'gate': give" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "file", sorted(EXPERIMENTS.glob("ablations/*.yaml")) + sorted(EXPERIMENTS.glob("results/*/ab*"))
)
def test_every_shipped_variant_states_its_mechanism(file: Path) -> None:
    for name, about in yaml.safe_load(file.read_text())["variants"].items():
        side, mechanisms = stated(file, name, about)
        assert mechanisms is not None
        assert (side == "none") == (mechanisms == {"none"})


def test_a_claim_is_judged_by_the_rows_of_table_1_that_it_is_about() -> None:
    """Not by rows that combine its fix with another: a clip behind gates, gates on linear attention."""
    about = yaml.safe_load((EXPERIMENTS / "ablations/table1.yaml").read_text())["variants"]
    variants = []
    for name in about:
        side, mechanisms = stated("table1.yaml", name, about[name])
        assert mechanisms is not None
        variants.append(Variant(name, name, name, side, runs=runs(3), mechanisms=mechanisms))
    results = [VariantResult(variant, changes=STILL) for variant in variants]
    found = claims(Comparison(Ablation(Path(), "t", "T", variants), results, baseline=results[0]))
    evidence = {claim.claim: {name[:2] for name in about if name in claim.evidence} for claim in found}
    assert evidence["Clipping the outliers hurts"] == {"10", "11", "12"}
    assert evidence["An output gate replaces the attention sink"] == {"02", "16"}
    assert evidence["Both gates together replace both sinks"] == {"18", "20"}


@pytest.mark.parametrize(
    ("keys", "mechanisms"),
    [
        ({}, {"unknown"}),
        ({"clipped_share": 0.0}, {"clipped"}),
        ({"gate_mean": 0.4, "norm_gate_mean": None}, {"gated"}),
        ({"norm_gate_mean": 0.4, "learned_sink_mass": 0.1}, {"gated", "absorbed"}),
    ],
)
def test_without_a_statement_the_summary_reveals_the_mechanism(
    tmp_path: Path, keys: dict[str, float | None], mechanisms: set[str]
) -> None:
    write_run(tmp_path / "dyt/seed0", "dyt", 0, Levels(), statistics=False, **keys)  # no name reveals anything
    assert load_ablation(tmp_path).variants[0].mechanisms == mechanisms


def test_an_unknown_mechanism_shows_nothing(tmp_path: Path) -> None:
    names = ("baseline", "sigmoid-attention", "preaffine", "dyt")
    comparison = compared(
        write_ablation(tmp_path, {n: replace(BACKCOPY[n], mechanism=None) for n in names}, statistics=False)
    )
    assert outcome(comparison, "preaffine") == ("not shown", "mechanism unknown")
    assert outcome(comparison, "dyt") == ("not shown", "mechanism unknown")
    # On the attention side the expectation is the same for every mechanism.
    assert outcome(comparison, "sigmoid-attention") == ("as the paper expects", "first-token mass falls, R stays")
    found = {claim.claim: claim for claim in claims(comparison)}
    assert {claim.verdict for claim in found.values() if claim.key in ("C1", "C4", "C5", "unifying")} == {"cannot tell"}
    pre_affine = found["A parameter can absorb the residual sink (PreAffine)"]
    assert pre_affine.evidence == "Mechanism unknown: Sink-absorbed, PreAffine, DyT; state it in ablation.yaml."
    assert any("*Mechanism unknown*" in note for note in contents(comparison)["notes"])


def test_every_claim_has_a_verdict(comparison: Comparison) -> None:
    found = {claim.claim.split(" (")[0]: claim for claim in claims(comparison)}
    assert found["Without the residual's normalizer the model is worse"].verdict == "supported"
    attention = found["Without the attention's normalizer the model is worse"]
    visible = next(r for r in comparison.results if r.variant.name == "sigmoid-attention").loss.visible  # type: ignore[union-attr]
    assert attention.verdict == f"cannot tell below {visible:.2g}"
    assert f"(cannot tell below {visible:.2g})" in attention.evidence
    assert found["The norm's gain at the sink dimension is small"].verdict == "supported"
    assert found["The sink itself contributes little: the first token's value is small"].verdict == "supported"
    assert "these runs were not probed" in found["The norm's gain at the sink dimension is small"].evidence
    assert found["Each side's fixes act on their own sink only"].verdict == "supported"
    together = found["Both gates together replace both sinks"]
    assert together.verdict == "supported in part"
    assert "Unexpectedly" in together.evidence
    assert "0.64" in together.evidence
    assert "0.09" in together.evidence
    assert found["Without outliers, quantization to few bits costs less"].verdict == "cannot tell"
    assert {claim.key for claim in claims(comparison)} == {*(f"C{i}" for i in range(1, 9)), "unifying"}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.3, 0.4), "supported"), ((0.6, 0.7), "contradicted"), ((0.4, 0.6), "cannot tell")],
)
def test_a_gain_on_both_sides_of_the_limit_tells_nothing(
    gains: tuple[float, float], verdict: str, tmp_path: Path
) -> None:
    for seed, gain in enumerate(gains):
        write_run(tmp_path / f"baseline/seed{seed}", "baseline", seed, Levels(gain=gain), statistics=False)
    (claim,) = (claim for claim in claims(compared(tmp_path)) if claim.key == "C3")
    assert claim.verdict == verdict


def test_what_was_not_changed_is_no_evidence_against_a_claim(tmp_path: Path) -> None:
    variants = {name: BACKCOPY[name] for name in ("baseline", "clip-1000")}
    root = write_ablation(tmp_path, variants, statistics=False)
    (claim,) = (claim for claim in claims(compared(root)) if claim.key == "C2")
    assert (claim.verdict, claim.evidence) == ("no effect", "Clipped, residual stream at 1000 changed nothing.")
    # A clip of the norm's input tells its own: its losses are the baseline's to the last digit.
    for seed in (0, 1, 2):
        loss = RunFolder(root / f"baseline/seed{seed}").summary()["val_loss"]
        for name, clipped in (("clip-1000", 0.1), ("preaffine", None)):
            write_run(root / f"{name}/seed{seed}", name, seed, variants["clip-1000"], statistics=False)
            run = RunFolder(root / f"{name}/seed{seed}")
            run.finish(run.summary() | {"val_loss": loss, "clipped_share": clipped})
    assert outcome(compared(root), "clip-1000") == ("no effect", "the intervention changed nothing")


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    comparison = compared(write_ablation(tmp_path, BACKCOPY, seeds=(0,), statistics=False))
    assert outcome(comparison, "gated-attention") == ("not shown", "one seed has no spread")
    changes = ("C1", "C2", "C4", "C5", "unifying")
    assert {claim.verdict for claim in claims(comparison) if claim.key in changes} == {"cannot tell"}


def test_without_a_baseline_nothing_is_shown(tmp_path: Path) -> None:
    rest = {name: levels for name, levels in BACKCOPY.items() if name != "baseline"}
    comparison = compared(write_ablation(tmp_path, rest, statistics=False))
    assert comparison.baseline is None
    assert outcome(comparison, "gated-norm") == ("not shown", "no baseline")
    assert {claim.verdict for claim in claims(comparison)} == {"cannot tell"}


def test_a_baseline_without_sinks_is_reported(tmp_path: Path) -> None:
    flat = {name: replace(levels, first=0.02, score=2.0, spread=0.001) for name, levels in BACKCOPY.items()}
    comparison = compared(write_ablation(tmp_path, flat, statistics=False))
    sentence = no_sink(comparison)
    assert sentence is not None
    assert "No attention sink (first-token mass 0.02) and no residual sink (R 2.0) formed" in sentence
    assert sentence.endswith("Sinks grow with the number of steps.")
    assert outcome(comparison, "gated-attention")[0] == "not shown"
    verdicts = {claim.verdict for claim in claims(comparison) if claim.key in ("C3", "C4", "C5", "C8")}
    assert verdicts == {"cannot tell"}


def test_a_sink_on_one_side_only(tmp_path: Path) -> None:
    only_attention = {name: replace(levels, score=2.0) for name, levels in BACKCOPY.items()}
    comparison = compared(write_ablation(tmp_path, only_attention, statistics=False))
    sentence = no_sink(comparison)
    assert sentence is not None
    assert sentence.startswith("No residual sink (R 2.0) formed")


def test_a_fix_that_also_changes_the_other_sink_is_contrary(tmp_path: Path) -> None:
    variants = {"baseline": BACKCOPY["baseline"], "preaffine": replace(BACKCOPY["preaffine"], first=0.2)}
    comparison = compared(write_ablation(tmp_path, variants, statistics=False))
    assert outcome(comparison, "preaffine") == ("contrary", "first-token mass falls")


def losses(tmp_path: Path, differences: list[float], **variants: list[float]) -> Comparison:
    """A clip, and other variants, whose losses differ from the baseline's by so much."""
    for name, given in {"baseline": [0.0] * len(differences), "clip": differences, **variants}.items():
        for seed, difference in enumerate(given):
            clip = BACKCOPY["clip-input"] if name == "clip" else Levels()
            run = write_run(tmp_path / f"{name}/seed{seed}", name, seed, clip, statistics=False)
            run.finish(run.summary() | {"val_loss": 1.5 + difference})
    described = {"clip": {"side": "residual", "mechanism": "clipped"}}
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({"variants": {"baseline": {}, **described}}))
    return compared(tmp_path)


@pytest.mark.parametrize(
    ("differences", "judged", "claimed"),
    [
        # Three seeds see 0.018 at this noise, four times more than the difference.
        ([0.0, 0.005, 0.01], ("not shown", "loss: cannot tell below 0.016"), "cannot tell below 0.016"),
        ([0.3, 0.305, 0.31], ("as the paper expects", "R falls, loss higher"), "supported"),
        ([-0.3, -0.305, -0.31], ("contrary", "loss lower"), "contradicted"),
        # Six seeds are tested: this difference is below what they see with a power of 80 %, and is found.
        ([0.000, 0.004, 0.006, 0.004, 0.006, 0.002], ("as the paper expects", "R falls, loss higher"), "supported"),
        ([0.0] * 6, ("no effect", "the intervention changed nothing"), "no effect"),
        ([0.3], ("not shown", "one seed has no spread"), "cannot tell"),
    ],
)
def test_a_clip_that_costs_too_little_to_see_is_not_contrary(
    differences: list[float], judged: tuple[str, str], claimed: str, tmp_path: Path
) -> None:
    comparison = losses(tmp_path, differences)
    assert outcome(comparison, "clip") == judged
    assert next(claim for claim in claims(comparison) if claim.key == "C2").verdict == claimed


def test_the_pooled_noise_counts_where_a_row_is_quiet_by_chance(tmp_path: Path) -> None:
    comparison = losses(tmp_path, [0.010, 0.0101, 0.0102], gate=[-0.01, 0.0, 0.01], norm=[0.02, 0.0, 0.01])
    clip = next(r for r in comparison.results if r.variant.name == "clip")
    assert clip.changes[LOSS] == "cannot tell"
    assert clip.loss is not None
    assert clip.loss.visible == pytest.approx(smallest_effect(math.sqrt((1e-8 + 1e-4 + 1e-4) / 3), 3))
    assert comparison.noise is not None
    assert (comparison.noise.degrees, comparison.noise.rows) == (6, 3)


def test_holm_counts_the_rows_of_six_seeds_only(tmp_path: Path) -> None:
    six = [0.000, 0.006, 0.008, 0.002, 0.008, 0.000]
    alone = losses(tmp_path / "alone", six, gate=[0.1, 0.2, 0.3])
    (p,) = (r.loss.p for r in alone.results if r.loss and r.loss.p is not None)
    more = losses(tmp_path / "more", six, gate=[-d for d in six], norm=[0.01, -0.01, 0.0, 0.01, -0.01, 0.0])
    found = {r.variant.name: r for r in more.results if r.loss}
    assert p == pytest.approx(Paired.of(six).p)  # type: ignore[union-attr]
    assert found["clip"].loss.p == pytest.approx(3 * p)  # type: ignore[union-attr]
    assert 0.05 / 3 < p < 0.05
    assert [r.changes[LOSS] for r in alone.results if r.variant.name == "clip"] == ["higher"]
    assert {r.changes[LOSS] for r in found.values()} == {"cannot tell"}


def test_a_row_that_cannot_tell_is_below_what_it_can_see() -> None:
    """Of twenty rows: the first would be called at 5 %, but not among so many."""
    noise = [0.01, -0.01, 0.006, -0.006, 0.003, -0.003]
    rows = {str(i): Paired.of([0.004 * i / 20 * 5 + d for d in noise]) for i in range(20)}
    _, found = judge_losses({name: row for name, row in rows.items() if row is not None})
    assert {each.call for each in found.values()} == {"cannot tell", "higher"}
    for each in found.values():
        assert each.visible is not None
        assert each.call == "higher" or each.difference.mean < each.visible


def test_a_diverged_normalizer_free_model_supports_the_claim(tmp_path: Path) -> None:
    variants = {
        "baseline": BACKCOPY["baseline"],
        "dyt": Levels(side="residual", mechanism="unnormalized", diverged=True),
    }
    comparison = compared(write_ablation(tmp_path, variants, statistics=False))
    claim = claims(comparison)[0]
    assert claim.verdict == "supported"
    assert "diverged" in claim.evidence
    assert outcome(comparison, "dyt") == ("as the paper expects", "every run diverged")


def test_a_probed_sink_is_not_said_to_be_unknown(tmp_path: Path) -> None:
    comparison = compared(write_ablation(tmp_path, {"baseline": BACKCOPY["baseline"]}, seeds=(0,), statistics=False))
    folder = comparison.ablation.runs[0].folder.path / "probes"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({"residual": {"roles": {"all|ordinary": {"named": ["rescales"]}}}}))
    found = {claim.key: claim.evidence for claim in claims(compared(tmp_path))}
    assert found["C3"].endswith("its role is in the table of roles.")
    assert found["C8"].endswith("these runs were not probed.")  # the attention side was not probed


def test_a_variant_is_compared_with_what_it_names(tmp_path: Path) -> None:
    """Of two depths each has its own reference, which is compared with nothing."""
    losses = {"baseline": 2.0, "gated": 2.1, "deep-baseline": 1.0, "deep-gated": 1.3}
    write_ablation(tmp_path, {name: Levels(loss=loss) for name, loss in losses.items()}, statistics=False)
    file = tmp_path / "ablation.yaml"
    content = yaml.safe_load(file.read_text())
    for name in ("deep-baseline", "deep-gated"):
        content["variants"][name]["against"] = "deep-baseline"
    file.write_text(yaml.safe_dump(content))
    comparison = compared(tmp_path)
    found = {r.variant.name: r for r in comparison.results}
    assert found["deep-baseline"].baseline is found["deep-baseline"].loss is None
    assert found["deep-gated"].loss is not None
    assert found["gated"].loss is not None
    assert found["deep-gated"].loss.difference.mean == pytest.approx(0.3, abs=0.02)
    assert found["gated"].loss.difference.mean == pytest.approx(0.1, abs=0.02)
    assert "compared with: deep-baseline" in remark(found["deep-gated"])
