"""What disagrees with the paper stands in the first paragraph, at the level that its seeds can carry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinks.errors import UserError
from sinks.report import compare, load_ablation
from sinks.report.ablation import read_ablation_file
from sinks.report.paper_rows import beside
from sinks.report.render import contents
from tests.report.synthetic import BACKCOPY, Levels, write_ablation, write_run

TABLE = Path(__file__).parents[2] / "experiments/ablations/table1.yaml"
ROWS: dict[str, Mapping[str, Any]] = {
    "baseline": {"outliers": 6000, "loss": 2.0},
    "gate": {"outliers": 2800, "loss": 1.9, "reference": "baseline"},
    "norm": {"outliers": 430, "loss": 1.8, "reference": "gate"},
    "clip": {"diverges": True, "reference": "baseline"},
}
LOSSES = {"gate": 1.51, "norm": 1.52}


def written(root: Path, largest: Mapping[str, tuple[float, ...]], losses: Mapping[str, float] | None = None) -> Path:
    for name, by_seed in largest.items():
        for seed, value in enumerate(by_seed):
            loss = (losses or {}).get(name, 1.5) + 1e-4 * ((seed + len(name)) % 3)
            write_run(
                root / f"{name}/seed{seed}",
                name,
                seed,
                Levels(),
                statistics=False,
                residual_max_abs=value,
                val_loss=loss,
            )
    variants = {name: {"paper_row": dict(ROWS[name]), "side": "none", "mechanism": "none"} for name in largest}
    (root / "ablation.yaml").write_text(yaml.safe_dump({"variants": variants}, sort_keys=False))
    return root


def lead(root: Path) -> str:
    return " ".join(contents(compare(load_ablation(root)))["answer"])


def test_directions_are_compared_with_the_row_that_the_paper_names(tmp_path: Path) -> None:
    """GatedNorm is below the baseline here, yet above the gate, its reference."""
    text = lead(written(tmp_path, {"baseline": (30.0,), "gate": (10.0,), "norm": (20.0,), "clip": (5.0,)}, LOSSES))
    assert "Opposite direction of the largest |h|: norm (0.15 there, 2.00 here, of gate)." in text
    assert "One seed gives a direction without a spread." in text
    assert "Of 2 rows one seed cannot tell the sign of the loss difference." in text
    assert "Diverged in the paper and not here: clip." in text
    assert text.endswith("This holds for models of 0.4 M parameters on 1.02 M tokens, and says nothing of larger ones.")


@pytest.mark.parametrize(("ratios", "named"), [((40.0, 50.0), True), ((40.0, 20.0), False), ((20.0, 10.0), False)])
def test_a_direction_counts_where_all_seeds_agree(ratios: tuple[float, ...], named: bool, tmp_path: Path) -> None:
    text = lead(written(tmp_path, {"baseline": (30.0, 30.0), "gate": ratios}))
    assert ("Opposite direction" in text) == named
    assert "One seed" not in text


def test_a_loss_that_is_seen_to_go_the_other_way_is_named(tmp_path: Path) -> None:
    largest = {"baseline": (30.0,) * 3, "gate": (10.0,) * 3}
    text = lead(written(tmp_path / "up", largest, {"gate": 1.7}))
    assert "Opposite sign of the loss difference: gate (-0.100 there, +0.2" in text
    assert "Opposite sign" not in lead(written(tmp_path / "down", largest, {"gate": 1.3}))
    assert "larger ones" not in lead(written(tmp_path / "down", largest, {"gate": 1.3}))


def test_outcomes_and_seeds_without_a_sink_are_named(tmp_path: Path) -> None:
    variants = {name: BACKCOPY[name] for name in ("baseline", "clip-1000", "gate-and-gated-norm")}
    root = write_ablation(tmp_path, variants, statistics=False)
    write_run(root / "baseline/seed2", "baseline", 2, Levels(), statistics=False, first_token_mass_max_head=0.05)
    text = lead(root)
    assert "No effect, so no evidence either way: Clipped, residual stream at 1000" in text
    assert "is below 0.2 at seed 2 (0.05)." in text


def test_the_paper_and_the_public_result_stand_beside_the_runs(tmp_path: Path) -> None:
    root = written(tmp_path, {"baseline": (30.0, 30.0), "gate": (10.0, 20.0)})
    file = root / "ablation.yaml"
    content = yaml.safe_load(file.read_text())
    content["variants"]["gate"]["public"] = "Elsewhere it is lower (a source)."
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    table = contents(compare(load_ablation(root)))["against"]
    row = dict(zip(table.headings, table.rows[1], strict=True))
    assert row["public result"] == "Elsewhere it is lower (a source)."
    assert row["the paper expects"] == "Outliers 2800, loss 1.9."
    assert row["largest |h| over its reference's: paper"] == "0.47"
    assert row["largest |h| over its reference's: here"] == "0.50 \u00b1 0.17"
    assert row["\u0394 loss to its reference: paper"] == "-0.100"


@pytest.mark.parametrize(
    ("row", "error"),
    [({"losses": 1.0}, "has 'losses' in paper_row: give outliers"), ({"reference": "x"}, "reference 'x'")],
)
def test_a_row_that_cannot_be_read_is_named(row: dict[str, Any], error: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"variants": {"v": {"paper_row": row}}}))
    with pytest.raises(UserError, match=error):
        read_ablation_file(file)


def test_table_1_states_the_paper_s_rows(tmp_path: Path) -> None:
    """22 rows: their differences are those that the paper prints, where it prints one."""
    about = yaml.safe_load(TABLE.read_text())["variants"]
    for name in about:
        write_run(tmp_path / f"{name}/seed0", name, 0, Levels(), statistics=False)
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({"variants": about}, sort_keys=False))
    found = beside(compare(load_ablation(tmp_path)))
    assert len(found) == 22
    printed = {4: -0.007, 5: -0.005, 9: 0.018, 12: 0.006, 13: 0.003, 14: 0.001, 15: 0.011, 16: -0.002, 17: -0.002}
    printed |= {2: -0.007, 8: 0.084, 18: -0.003, 19: -0.003, 20: -0.006, 21: -0.004, 22: -0.003}
    for name, row in found.items():
        if int(name[:2]) in printed:
            assert row.loss_difference == pytest.approx(printed[int(name[:2])]), name
    assert found["19-ga-pre-affine"].outliers == pytest.approx(640 / 2800)
