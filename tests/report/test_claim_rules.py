"""C6, C7 and the unifying claim: each rule can support, contradict, and say that it cannot tell."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinks.report import compare, four_bits, gated_units, load_ablation, same_job
from sinks.report.claims import claims
from sinks.report.outcomes import Comparison
from tests.report.synthetic import Levels, write_run

WIGGLE = (0.0003, -0.0002, 0.0001, 0.0, -0.0003, 0.0002)


def write(
    root: Path, variants: Mapping[str, dict[str, Any]], losses: Mapping[str, float], seeds: int = 3, **summary: Any
) -> Comparison:
    """Runs with these losses, each seed its own wiggle for every variant."""
    for place, name in enumerate(variants):
        for seed in range(seeds):
            loss = losses.get(name, 1.5) + WIGGLE[(seed + place) % len(WIGGLE)]
            gate = 0.4 if "gated" in str(variants[name].get("mechanism")) else None
            path = root / f"{name}/seed{seed}"
            run = write_run(path, name, seed, Levels(), statistics=False, val_loss=loss, gate_mean=gate, **summary)
            unit = "SigmoidGLU" if name.endswith("glu") else "SwiGLU"
            given = {
                "attention_gate": {"class_path": "a.HeadwiseGate" if gate else "a.NoGate"},
                "feed_forward": {"class_path": f"sinks.models.feed_forward.{unit}"},
                "architecture": {"d_model": 8, "ffn_hidden": place},
            }
            run.write_config(yaml.safe_dump({"model": {"class_path": "sinks.families.CausalLM", "init_args": given}}))
    content = {"name": "t", "baseline": next(iter(variants)), "variants": dict(variants)}
    (root / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return compare(load_ablation(root))


UNITS: dict[str, dict[str, Any]] = {
    "baseline": {"side": "none", "mechanism": "none"},
    "gate": {"side": "attention", "mechanism": "gated"},
    "glu": {"side": "none", "mechanism": "none"},
    "gate-glu": {"side": "attention", "mechanism": "gated"},
}


@pytest.mark.parametrize(
    ("plain", "gated", "verdict"),
    [
        (0.1, 0.0, "supported"),  # the gate removes what GLU costs
        (0.1, 0.1, "contradicted"),  # it does not
        (0.0, 0.0, "cannot tell"),  # there is no cost that it could remove
        (0.0, -0.1, "supported"),  # better than SwiGLU
    ],
)
def test_glu_is_judged_by_what_the_gate_makes_of_its_cost(
    plain: float, gated: float, verdict: str, tmp_path: Path
) -> None:
    comparison = write(tmp_path, UNITS, {"glu": 1.5 + plain, "gate-glu": 1.5 + gated})
    found = gated_units.verdict(comparison)
    assert found.verdict == verdict
    assert found.text.count(": loss ") == 2
    assert "+0.011 without a gate" in found.text
    assert (found.below is not None) == (verdict == "cannot tell")


def test_glu_has_a_partner_of_the_same_configuration_only(tmp_path: Path) -> None:
    """That of gate-glu has a gate: the baseline is none, and without it there is no verdict, but what to run."""
    comparison = write(tmp_path, {name: UNITS[name] for name in ("baseline", "gate-glu")}, {})
    assert gated_units.pairs(comparison) == []
    found = gated_units.verdict(comparison)
    assert found.verdict == "cannot tell"
    assert "rows 1, 2, 15 and 16" in found.text
    whole = write(tmp_path / "whole", UNITS, {})
    named = [(a.variant.name, b.variant.name) for a, b in gated_units.pairs(whole)]
    assert named == [("glu", "baseline"), ("gate-glu", "gate")]


def test_one_seed_of_glu_tells_nothing(tmp_path: Path) -> None:
    found = gated_units.verdict(write(tmp_path, UNITS, {"gate-glu": 1.9}, seeds=1))
    assert found.verdict == "cannot tell"
    assert "(one seed)" in found.text


GATES: dict[str, dict[str, Any]] = {
    "baseline": {"side": "none", "mechanism": "none"},
    "gate": {"side": "attention", "mechanism": "gated", "label": "Output gate"},
    "norm": {"side": "residual", "mechanism": "gated", "label": "GatedNorm"},
    "both": {"side": "both", "mechanism": "gated", "label": "Both"},
    "pre": {"side": "residual", "mechanism": "absorbed", "label": "PreAffine"},
}


def test_claims_are_not_judged_by_what_the_paper_does_not_have(tmp_path: Path) -> None:
    """Exclusive self-attention alone and beside each gate: neither it nor the pair stands for a gate."""
    others = {"x": ("attention", "projected"), "x-gate": ("attention", ["gated", "projected"]),
              "x-norm": ("residual", ["gated", "projected"]), "x-both": ("both", ["gated", "projected"])}  # fmt: skip
    variants = {"baseline": GATES["baseline"]} | {n: {"side": s, "mechanism": m} for n, (s, m) in others.items()}
    judged = {claim.claim: claim for claim in claims(write(tmp_path, variants, {}))}
    for start in (
        "A parameter can absorb",
        "A norm gate",
        "An output gate",
        "Both gates",
        "Without outliers",
        "Where a par",
    ):
        found = [claim for words, claim in judged.items() if words.startswith(start)]
        assert found
        for claim in found:
            assert claim.verdict == "cannot tell"
            assert claim.evidence.startswith("No such variant was run"), claim


def quantized(root: Path, costs: Mapping[str, Sequence[float]], **about: Any) -> None:
    for name, by_seed in costs.items():
        for seed, cost in enumerate(by_seed):
            folder = root / f"{name}/seed{seed}/quantization"
            folder.mkdir(exist_ok=True)
            content = {"scheme": "nvfp4", "transform": "none", "only": "both", "rows": [96, 65]}
            content |= {"rows_sha256": f"r{seed}", "calibration_sha256": f"c{seed}"}
            content |= {"quantized": {"change": {"mean": cost, "low": None, "high": None}}} | about
            (folder / f"{content['scheme']}.json").write_text(json.dumps(content))


def costs(mean: float) -> list[float]:
    return [mean + each for each in (0.001, -0.001, 0.0)]


@pytest.mark.parametrize(
    ("norm", "pre", "verdicts"),
    [
        (0.05, 0.35, ("supported", "supported")),
        (0.35, 0.05, ("contradicted", "contradicted")),
        (0.2, 0.2, ("cannot tell", "cannot tell")),
    ],
)
def test_four_bits_are_judged_against_the_reference(
    norm: float, pre: float, verdicts: tuple[str, str], tmp_path: Path
) -> None:
    write(tmp_path, GATES, {})
    wobbling = [0.2, 0.2, 0.202]
    quantized(tmp_path, {"baseline": wobbling, "gate": wobbling, "norm": costs(norm), "pre": costs(pre)})
    comparison = compare(load_ablation(tmp_path))
    found = [four_bits.verdict(comparison, mechanism) for mechanism in ("gated", "absorbed")]
    assert tuple(each.verdict for each in found) == verdicts
    assert "1.36 with GatedNorm" in found[0].text
    assert "3.15 with PreAffine" in found[1].text


def test_both_gates_are_compared_with_the_output_gate_on_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path, GATES, {})
    quantized(tmp_path, {"baseline": costs(0.9), "gate": [0.1, 0.1, 0.1], "both": costs(0.2)})
    found = four_bits.verdict(compare(load_ablation(tmp_path)), "gated")
    assert found.verdict == "contradicted"  # by the output gate; less than the baseline
    assert "minus that of Output gate" in found.text
    quantized(tmp_path, {"gate": [0.1, 0.1, 0.1]}, rows_sha256="others")
    assert four_bits.verdict(compare(load_ablation(tmp_path)), "gated").text.startswith("Not measured")
    # A scheme that leaves activations as they are is none of four bits on both sides.
    quantized(tmp_path, {"baseline": costs(0.9), "norm": costs(0.1)}, scheme="w4a16")
    assert four_bits.verdict(compare(load_ablation(tmp_path)), "gated").text.startswith("Not measured")


def test_without_measurements_the_command_is_named(tmp_path: Path) -> None:
    found = four_bits.verdict(write(tmp_path, GATES, {}), "gated")
    assert found.verdict == "cannot tell"
    assert f"sinks quantize {tmp_path} --scheme nvfp4" in found.text
    assert f"sinks transfer {tmp_path}" in same_job.verdict(compare(load_ablation(tmp_path))).text


def compared(root: Path, with_baseline: Sequence[float], ceilings: tuple[float, float] | None) -> Comparison:
    exclusive = {"side": "attention", "mechanism": "projected"}
    write(root, {name: GATES[name] for name in ("baseline", "gate")} | {"exclusive": exclusive}, {})
    shared = {"quantity": "weight", "queries": "all"}
    entries = [shared | {"variant": "gate", "against": "baseline", "best": value} for value in with_baseline]
    for name, ceiling in zip(("baseline", "gate"), ceilings or (), strict=False):
        entries.append(shared | {"variant": name, "against": "itself", "best": ceiling})
    # Of what the paper does not have, and of other queries and quantities: they decide nothing.
    entries.append(shared | {"variant": "exclusive", "against": "baseline", "best": -1.0})
    entries.append(shared | {"variant": "exclusive", "against": "itself", "best": 0.9})
    entries.append({"variant": "gate", "against": "baseline", "quantity": "weight", "queries": "some", "best": -1.0})
    entries.append({"variant": "gate", "against": "baseline", "quantity": "scale", "queries": "all", "same_site": -1.0})
    content = {"baseline": "baseline", "queries": {"all": 9, "some": 3}, "comparisons": entries}
    (root / "transfer.json").write_text(json.dumps(content))
    return compare(load_ablation(root))


@pytest.mark.parametrize(
    ("with_baseline", "ceilings", "verdict"),
    [
        ((0.32, 0.5), (0.9, 0.4), "supported"),  # the ceiling is 0.6
        ((0.1, 0.29), (0.9, 0.4), "contradicted"),
        ((0.29, 0.5), (0.9, 0.4), "cannot tell"),
        ((0.9, 0.9), (0.9, 0.1), "cannot tell"),  # seeds of the fix have nothing in common
        ((0.9,), None, "cannot tell"),
    ],
)
def test_a_fix_does_the_same_job_where_it_agrees_as_far_as_seeds_do(
    with_baseline: tuple[float, ...], ceilings: tuple[float, float] | None, verdict: str, tmp_path: Path
) -> None:
    found = same_job.verdict(compared(tmp_path, with_baseline, ceilings))
    assert found.verdict == verdict
    assert "some -1.00 to -1.00" in found.text
