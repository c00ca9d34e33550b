"""Effects and interactions of factors, of losses that are planted."""

import json
from pathlib import Path

import pytest
import yaml

from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.report import load_ablation, write_report
from sinks.report.factorial import sentence, table
from tests.report.synthetic import Levels, write_run

FACTORS = {"a": "first", "b": "second", "c": "third"}
COMBINATIONS = [[name for i, name in enumerate(FACTORS) if number >> i & 1] for number in range(8)]


def planted(has: list[str], seed: int) -> float:
    """a and b lower the loss by 0.3, also together; c raises it by 0.1 + 0.01 seed, whatever the others are."""
    return 2.0 - 0.3 * bool({"a", "b"} & set(has)) + (0.1 + 0.01 * seed) * ("c" in has)


def write(root: Path, seeds: tuple[int, ...], combinations: list[list[str]] = COMBINATIONS) -> None:
    variants = {}
    for has in combinations:
        name = "-".join(has) or "none"
        variants[name] = {"has": has}
        for seed in seeds:
            write_run(root / name / f"seed{seed}", name, seed, Levels(), statistics=False)
            folder = RunFolder(root / name / f"seed{seed}")
            folder.finish(folder.summary() | {"val_loss": planted(has, seed)})
    (root / "ablation.yaml").write_text(yaml.safe_dump({"factors": FACTORS, "variants": variants}))


def test_effects_and_interactions(tmp_path: Path) -> None:
    """a alone does -0.3 and with b nothing: mean -0.15; their interaction is 0.3."""
    write(tmp_path, (0, 1, 2))
    found = table(load_ablation(tmp_path))
    assert found is not None
    assert found.headings[0] == "effect, 3 seeds"
    effects = {row[0]: row[1] for row in found.rows}
    assert {name: effects.pop(name) for name in ("first", "second", "third", "first x second")} == {
        "first": "-0.1500 [-0.1500, -0.1500]",
        "second": "-0.1500 [-0.1500, -0.1500]",
        "third": "+0.1100 [+0.0852, +0.1348]",  # 0.10, 0.11, 0.12: t(2) = 4.303 times 0.01 / sqrt(3)
        "first x second": "+0.3000 [+0.3000, +0.3000]",
    }
    assert {name: float(cell.split()[0]) for name, cell in effects.items()} == {"first x third": 0, "second x third": 0}
    write_report(tmp_path)
    for file in ("report.md", "report.html"):
        assert "The factors, and whether they replace one another" in (tmp_path / file).read_text()


def test_the_report_opens_with_what_does_not_add_up(tmp_path: Path) -> None:
    """Of the planted loss the first two factors alone; five seeds are not tested."""
    write(tmp_path / "tested", tuple(range(6)))
    expected = "Effects of two factors do not add up in loss: first x second +0.3000 [+0.3000, +0.3000]."
    assert sentence(load_ablation(tmp_path / "tested")) == expected
    write_report(tmp_path / "tested")
    assert expected in (tmp_path / "tested/report.md").read_text()
    write(tmp_path / "few", tuple(range(5)))
    assert sentence(load_ablation(tmp_path / "few")) == "6 seeds or more tell whether effects of two factors add up."
    write(tmp_path / "less", (0,), COMBINATIONS[:-1])
    assert sentence(load_ablation(tmp_path / "less")) == ""


def test_interactions_within_noise_are_not_told(tmp_path: Path) -> None:
    write(tmp_path, tuple(range(6)))
    for seed in range(6):
        folder = RunFolder(tmp_path / f"a-b/seed{seed}")
        folder.finish(folder.summary() | {"val_loss": planted(["a", "b"], seed) - 0.3 + 0.2 * (-1) ** seed})
    assert sentence(load_ablation(tmp_path)) == "6 seeds can tell no interaction of two factors."


def test_only_seeds_with_every_combination_count(tmp_path: Path) -> None:
    write(tmp_path, (0, 1))
    summary = tmp_path / "a-b/seed1/summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"diverged": True}))
    found = table(load_ablation(tmp_path))
    assert found is not None
    assert found.headings[0] == "effect, 1 seed"
    assert found.rows[2][1] == "+0.1000"
    write(tmp_path / "less", (0,), COMBINATIONS[:-1])
    assert table(load_ablation(tmp_path / "less")) is None


def test_a_factor_that_is_not_named_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, (0,), [[], ["d"]])
    with pytest.raises(UserError, match="variant d has 'd', which is none of its factors"):
        load_ablation(tmp_path)
    write(tmp_path / "twice", (0,))
    file = tmp_path / "twice/ablation.yaml"
    content = yaml.safe_load(file.read_text())
    content["variants"]["again"] = {"has": ["b", "a"]}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="variants a-b and again have the same factors, of which only one would count"):
        load_ablation(tmp_path / "twice")


@pytest.mark.parametrize("key", ["steps", "data_fingerprint"])
def test_runs_of_other_steps_or_data_are_not_combined(key: str, tmp_path: Path) -> None:
    write(tmp_path, (0, 1))
    folder = RunFolder(tmp_path / "a-b/seed1")
    folder.finish(folder.summary() | {key: 3, "stopped_early": True})
    found = table(load_ablation(tmp_path))
    assert found is not None
    assert found.headings[0] == "effect, 1 seed"
