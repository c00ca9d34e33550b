"""Probes and quantization of an ablation's runs, in its report."""

import json
from pathlib import Path

import pytest

from sinks.record.folder import to_json
from sinks.report import compare, load_ablation, terminal, write_report
from sinks.report.causes import tables
from sinks.report.tables import results
from tests.report.synthetic import Levels, write_ablation


def change(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def write(folder: Path, seed: int, masked: float) -> None:
    """A probe of both sides, and a quantization, as the commands write them."""
    names = ("bias", "contributes", "constant scale", "rescales")
    effects = {name: change(0.1 * (i + seed)) for i, name in enumerate(names)}
    probe = {
        "attention": {
            "layers": {"a": {"mean_mass": [0.1, 0.1]}, "b": {"mean_mass": [0.4 + 0.4 * seed, 0.0]}},
            "edits": {"all|first|masked|sink": {"change": change(masked)}},
            "roles": {"all|first": {"effects": effects, "named": ["rescales"] if seed else ["nothing"]}},
        },
        "residual": {"edits": {}, "roles": {"head|ordinary": {"effects": {}, "named": ["nothing"]}}},
    }
    quantized = {"scheme": "int4", "transform": "smooth", "rows": [32, 65], "quantized": {"change": change(masked / 2)}}
    for name, content in (("probes", probe), ("quantization", quantized)):
        (folder / name).mkdir()
        (folder / name / "x.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_ablation(tmp_path, {"baseline": Levels(), "gate": Levels()}, seeds=(0, 1), statistics=False)
    for seed in (0, 1):
        write(root / f"baseline/seed{seed}", seed, masked=0.2 + 0.2 * seed)
    write(root / "gate/seed0", 0, masked=0.0)
    return root


def test_tables_are_means_over_seeds(root: Path) -> None:
    found = dict(tables(load_ablation(root)))
    assert list(found) == [
        "Attention side, layers: all, sinks: first",
        "Residual side, norms: head, tokens: ordinary",
        "Change of loss under simulated quantization",
    ]
    attention = found["Attention side, layers: all, sinks: first"]
    assert attention.rows == [
        ["baseline", "0.60 \u00b1 0.20", "+0.300 [+0.200, +0.400]", "+0.050 [+0.000, +0.100]",
         "+0.150 [+0.100, +0.200]", "+0.250 [+0.200, +0.300]", "+0.350 [+0.300, +0.400]",
         "nothing (1 of 2); rescales (1 of 2)"],
        ["gate", "0.40", "+0.000", "+0.000", "+0.100", "+0.200", "+0.300", "nothing"],
    ]  # fmt: skip
    residual = found["Residual side, norms: head, tokens: ordinary"]
    assert residual.rows[0] == ["baseline", "-", "-", "-", "-", "-", "-", "nothing (2 of 2)"]
    quantized = found["Change of loss under simulated quantization"]
    assert quantized.headings == ["variant", "int4, smooth (32 rows)"]
    assert quantized.rows == [["baseline", "+0.150 [+0.100, +0.200]"], ["gate", "+0.000"]]


def test_the_report_shows_them_and_names_a_damaged_file(root: Path) -> None:
    write_report(root)
    for file in ("report.md", "report.html"):
        text = (root / file).read_text()
        assert "Attention side, layers: all, sinks: first" in text
        assert "int4, smooth (32 rows)" in text
    damaged = root / "gate/seed0/probes/x.json"
    damaged.write_text("[")
    write_report(root)
    for file in ("report.md", "report.html"):
        assert f"Not shown: {damaged} is damaged: delete it, and measure again" in (root / file).read_text()
    damaged.unlink()


def test_the_causal_number_is_beside_first_token_mass(root: Path) -> None:
    """That on the most rows; a run without it has none, and neither has one where it is no number."""
    wider = {"rows": [96, 65], "attention": {"edits": {"all|first|masked|sink": {"change": change(0.5)}}}}
    none = {"rows": [96, 65], "attention": {"edits": {"all|first|masked|sink": {"change": change(float("nan"))}}}}
    (root / "baseline/seed0/probes/a.json").write_text(json.dumps(wider))
    (root / "gate/seed0/probes/x.json").write_text(to_json(none))
    comparison = compare(load_ablation(root))
    table = results(comparison)
    place = table.headings.index("first-token mass") + 1
    assert table.headings[place] == "\u0394 loss, token 0 masked"
    assert [row[place] for row in table.rows] == ["0.450 \u00b1 0.050", "-"]
    assert "masked" in terminal(comparison)
    write_report(root)
    assert "no head in any layer may attend to the first token" in (root / "report.md").read_text()


def test_a_series_of_checkpoints_has_tables_of_its_own(root: Path) -> None:
    for seed in (0, 1):
        folder = root / f"baseline/seed{seed}/probes"
        content = json.loads((folder / "x.json").read_text())
        for step in (1000, 160):
            content["attention"]["edits"]["all|first|masked|sink"]["change"] = change(step / 1000)
            (folder / f"series{step}.json").write_text(json.dumps(content | {"step": step}))
    found = dict(tables(load_ablation(root)))
    series = found["Over training. Attention side, layers: all, sinks: first"]
    assert series.headings[0] == "variant and step"
    assert [row[:3] for row in series.rows] == [
        ["baseline, step 160", "0.60 \u00b1 0.20", "+0.160 [+0.160, +0.160]"],
        ["baseline, step 1000", "0.60 \u00b1 0.20", "+1.000 [+1.000, +1.000]"],
    ]
    assert "nothing (1 of 2); rescales (1 of 2)" in series.rows[0]
    # The tables of the last checkpoints are as without them, and so is the number beside first-token mass.
    assert found["Attention side, layers: all, sinks: first"].rows[0][2] == "+0.300 [+0.200, +0.400]"
    assert compare(load_ablation(root)).results[0].spreads["first_token_masked"].mean == pytest.approx(0.3)


def test_without_them_there_is_no_section(tmp_path: Path) -> None:
    root = write_ablation(tmp_path, {"baseline": Levels()}, seeds=(0,), statistics=False)
    write_report(root)
    text = (root / "report.md").read_text()
    assert "What the loss owes" not in text
    assert "masked" not in text
