"""The tables of an ablation with axes, and where each variant's loss is lowest."""

import math
from pathlib import Path

import pytest
import yaml

from sinks.cli.axes import with_axes
from sinks.record import RunFolder
from sinks.report import compare, load_ablation, write_report
from sinks.report.sweep import DEVIATION, sentence, tables
from sinks.stats.paired import smallest_effect
from tests.report.synthetic import Levels, write_run

AXES = {
    "lr": {"x1": {"model.lr": 1.0}, "x2": {"model.lr": 2.0}},
    "alpha": {"small": {"model.a": 1}, "large": {"model.a": 2}},
}
VARIANTS = {"baseline": {"label": "Baseline", "without": ["alpha"]}, "dyt": {"label": "DyT"}}
LOSSES = {
    "baseline-lr-x1": 1.5, "baseline-lr-x2": 1.4,
    "dyt-lr-x1-alpha-small": 1.7, "dyt-lr-x2-alpha-small": 1.6,
    "dyt-lr-x1-alpha-large": 1.65, "dyt-lr-x2-alpha-large": 1.3,
}  # fmt: skip


def write(root: Path, diverged: tuple[tuple[str, int], ...] = ()) -> None:
    content = with_axes(Path("f"), {"name": "sweep", "axes": AXES, "variants": VARIANTS, "baseline": "baseline-lr-x1"})
    for name in content["variants"]:
        for seed in range(2):
            varies = 0.01 * (3 if "dyt" in name else 1) * (2 if "x2" in name else 1)
            more = {"val_loss": LOSSES[name] + varies * seed, "loss_spikes_per_10k": 100.0}
            write_run(root / name / f"seed{seed}", name, seed, Levels(), statistics=False, **more)
            if (name, seed) in diverged:
                folder = RunFolder(root / name / f"seed{seed}")
                folder.finish(folder.summary() | {"diverged": True})
    (root / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_rows_are_variants_and_columns_the_first_axis(tmp_path: Path) -> None:
    write(tmp_path)
    comparison = compare(load_ablation(tmp_path))
    (heading, loss), (other, spikes), (last, deviation) = tables(comparison)
    assert (heading, other, last) == ("Validation loss", "Loss spikes per 10,000 steps", DEVIATION)
    assert loss.headings == ["variant", "lr x1", "lr x2"]
    assert loss.rows == [
        ["Baseline", "1.505 ± 0.005", "1.410 ± 0.010"],
        ["DyT, alpha small", "1.715 ± 0.015", "1.630 ± 0.030"],
        ["DyT, alpha large", "1.665 ± 0.015", "1.330 ± 0.030"],
    ]
    # Differences of the two seeds to the baseline's, over sqrt(2): 0.01, 0.02, 0.05.
    assert [[name, *(cell.split(",")[0] for cell in cells)] for name, *cells in deviation.rows] == [
        ["Baseline", "-", "0.0071"],
        ["DyT, alpha small", "0.014", "0.035"],
        ["DyT, alpha large", "0.014", "0.035"],
        ["pooled", "0.014", "0.029"],
    ]
    see = float(deviation.rows[1][1].split(",")[1])
    assert see == pytest.approx(smallest_effect(0.02 / math.sqrt(2), 2), abs=0.005)
    assert spikes.rows[0] == ["Baseline", "100 ± 0", "100 ± 0"]
    lowest = "The loss of each variant is lowest at Baseline, lr x2 (1.410); and DyT, lr x2, alpha large (1.330)."
    assert sentence(comparison) == f"{lowest} No run diverged."
    write_report(tmp_path)
    for file in ("report.md", "report.html"):
        text = (tmp_path / file).read_text()
        assert "Along the axes" in text
        assert "The loss of each variant is lowest at" in text


def test_a_point_at_which_a_seed_diverged_is_not_the_lowest(tmp_path: Path) -> None:
    """The mean there is over the seeds that did not, which are the better ones."""
    write(tmp_path, diverged=(("dyt-lr-x2-alpha-large", 1), ("baseline-lr-x2", 0), ("baseline-lr-x2", 1)))
    comparison = compare(load_ablation(tmp_path))
    rows = tables(comparison)[0][1].rows
    assert rows[0] == ["Baseline", "1.505 ± 0.005", "2 diverged"]
    assert rows[2] == ["DyT, alpha large", "1.665 ± 0.015", "1.300, 1 diverged"]
    assert sentence(comparison) == (
        "The loss of each variant is lowest at Baseline, lr x1 (1.505); and DyT, lr x2, alpha small (1.630). "
        "Diverged: Baseline, lr x2 (2 of 2); and DyT, lr x2, alpha large (1 of 2)."
    )


def test_a_variant_without_the_first_axis_has_no_row(tmp_path: Path) -> None:
    """Its own axis would stand under the values of another."""
    other = {"of": "Plain", "side": "none"}
    content = {"name": "s", "variants": {
        "a1": {"of": "A", "at": {"lr": "x1"}}, "a2": {"of": "A", "at": {"lr": "x2"}},
        "p1": other | {"at": {"alpha": "x1"}}, "p2": other | {"at": {"alpha": "x2"}},
    }}  # fmt: skip
    for name in content["variants"]:
        write_run(tmp_path / name / "seed0", name, 0, Levels(), statistics=False)
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert [row[0] for row in tables(compare(load_ablation(tmp_path)))[0][1].rows] == ["A"]


def test_without_axes_there_is_no_table(tmp_path: Path) -> None:
    write_run(tmp_path / "baseline/seed0", "baseline", 0, Levels(), statistics=False)
    comparison = compare(load_ablation(tmp_path))
    assert (tables(comparison), sentence(comparison)) == ([], "")
