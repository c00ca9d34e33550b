"""Tokens saved, of losses that are planted."""

import math
from pathlib import Path

import pytest
import yaml

from sinks.record import RunFolder
from sinks.report import load_ablation, write_report
from sinks.report.tokens_saved import saved, table
from tests.report.synthetic import Levels, write_run

TOKENS, LOSSES = [1e6, 2e6, 4e6], [3.0, 2.8, 2.7]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (3.0, 0.0),
        (2.9, math.sqrt(2) - 1),  # half of the way in log tokens
        (2.8, 1.0),
        (2.75, 2 * math.sqrt(2) - 1),
        (2.7, 3.0),
        (3.01, -math.inf),
        (2.69, math.inf),
    ],
)
def test_between_the_baselines_budgets(loss: float, expected: float) -> None:
    assert saved(TOKENS, LOSSES, loss) == pytest.approx(expected, abs=1e-12)


def write(root: Path, losses: dict[str, tuple[int, list[float]]], curve: list[str]) -> None:
    for name, (tokens, of) in losses.items():
        for seed, loss in enumerate(of):
            write_run(root / name / f"seed{seed}", name, seed, Levels(), statistics=False)
            folder = RunFolder(root / name / f"seed{seed}")
            folder.finish(folder.summary() | {"val_loss": loss, "tokens": tokens})
    (root / "ablation.yaml").write_text(yaml.safe_dump({"tokens_curve": curve, "variants": dict.fromkeys(losses)}))


def test_the_table_and_its_intervals(tmp_path: Path) -> None:
    shift = [-0.02, -0.01, 0.0, 0.01, 0.02]
    curve = {f"baseline-{i}": (int(TOKENS[i]), [LOSSES[i] + s for s in shift]) for i in range(3)}
    others = {
        "paired": (int(1e6), [2.9 + s for s in shift]),  # the seeds' differences are those of the baseline
        "worse": (int(1e6), [3.2] * 5),
        "far": (int(1e6), [2.5] * 5),
        "longer": (int(2e6), [2.9] * 5),
        "few": (int(1e6), [2.9] * 4),
    }
    write(tmp_path, curve | others, list(curve))
    found = table(load_ablation(tmp_path))
    assert found is not None
    assert {row[0]: row[3:] for row in found.rows} == {
        "paired": ["0.41", "0.41 to 0.41"],
        "worse": ["below 0", "below 0 to below 0"],
        "far": ["above 3", "above 3 to above 3"],
        "few": ["0.39", "-"],  # of four seeds the baseline has 2.995: 2 ** (0.095 / 0.2) - 1
    }
    write_report(tmp_path)
    for file in ("report.md", "report.html"):
        assert "Tokens saved" in (tmp_path / file).read_text()


def test_an_interval_may_end_outside_the_budgets(tmp_path: Path) -> None:
    curve = {f"baseline-{i}": (int(TOKENS[i]), [LOSSES[i]] * 5) for i in range(3)}
    write(tmp_path, curve | {"noisy": (int(1e6), [2.5, 2.7, 2.9, 3.0, 3.1])}, list(curve))
    found = table(load_ablation(tmp_path))
    assert found is not None
    ((_, seeds, _, middle, ends),) = found.rows
    assert seeds == "5"
    assert 0 < float(middle) < 3
    assert ends.endswith("to above 3")


def test_without_two_budgets_there_is_no_table(tmp_path: Path) -> None:
    write(tmp_path, {"baseline-0": (int(1e6), [3.0]), "other": (int(1e6), [2.9])}, ["baseline-0", "baseline-1"])
    assert table(load_ablation(tmp_path)) is None
