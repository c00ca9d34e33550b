"""Costs are relative to the baseline of the same seed, and absent where they cannot be compared."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sinks.record import RunFolder
from sinks.report import compare, costs, load_ablation
from sinks.report.render import contents
from tests.report.synthetic import Levels, write_run

SPEED, WORK = "tokens per second, relative", "FLOPs per token, relative"


def run(root: Path, name: str, seed: int, speed: float, work: float, memory: float | None = None) -> RunFolder:
    folder = write_run(
        root / f"{name}/seed{seed}",
        name,
        seed,
        Levels(),
        statistics=False,
        tokens_per_second=speed,
        tflops_per_second=speed * work,
        parameters=1000 * seed + 5000,
    )
    config: dict[str, Any] = {"seed_everything": seed, "data": {"seed": seed}, "trainer": {"precision": "bf16-mixed"}}
    folder.write_config(yaml.safe_dump(config | {"model": {"class_path": name}}))
    if memory is not None:
        folder.append_metrics(
            [{"step": 1001, costs.PEAK_MEMORY: memory / 2}, {"step": 1002, costs.PEAK_MEMORY: memory}]
        )
    return folder


def cells(root: Path) -> dict[str, str]:
    table = costs.table(compare(load_ablation(root)))
    assert table is not None
    return dict(zip(table.headings, table.rows[1], strict=True))


def test_ratios_are_taken_seed_by_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, "baseline", seed, 100.0 * (seed + 1), 2.0, 3.0)
        run(tmp_path, "gate", seed, 80.0 * (seed + 1), 3.0, 4.0 + seed)
    found = cells(tmp_path)
    assert found[SPEED] == "0.80 \u00b1 0.00"
    assert found[WORK] == "1.50 \u00b1 0.00"
    assert found["peak memory, GB"] == "4.50 \u00b1 0.50"
    assert found["parameters"] == "5,000 to 6,000"
    assert found["first-token mass"].startswith("0.8")
    assert contents(compare(load_ablation(tmp_path)))["costs"] == costs.table(compare(load_ablation(tmp_path)))


def test_the_speed_of_a_cpu_is_absent(tmp_path: Path) -> None:
    run(tmp_path, "baseline", 0, 100.0, 2.0)
    run(tmp_path, "gate", 0, 80.0, 3.0)
    found = cells(tmp_path)
    assert SPEED not in found
    assert "peak memory, GB" not in found
    assert found[WORK] == "1.50"


@pytest.mark.parametrize(
    ("config", "provenance", "compared"),
    [
        ({}, {}, (True, True)),
        ({}, {"device": "another"}, (False, True)),
        ({}, {"versions": {"torch": "another"}}, (False, True)),
        ({"data": {"seed": 0, "init_args": {"batch_size": 4}}}, {}, (False, True)),
        ({"model": {"init_args": {"execution": {"compile": True}}}}, {}, (False, True)),
        ({"run": {"dir": "elsewhere"}}, {}, (True, True)),
        ({"trainer": {"precision": "bf16-mixed", "devices": 2}}, {}, (False, False)),
    ],
)
def test_runs_of_other_conditions_are_not_compared(
    config: dict[str, Any], provenance: dict[str, Any], compared: tuple[bool, bool], tmp_path: Path
) -> None:
    run(tmp_path, "baseline", 0, 100.0, 2.0, 3.0)
    folder = run(tmp_path, "gate", 0, 80.0, 3.0, 4.0)
    folder.write_config(yaml.safe_dump(folder.config() | config))
    folder.write_provenance(folder.provenance() | provenance)
    found = cells(tmp_path)
    assert (found[SPEED] != "-", found[WORK] != "-") == compared


def test_a_variant_of_another_seed_has_no_ratio(tmp_path: Path) -> None:
    run(tmp_path, "baseline", 0, 100.0, 2.0, 3.0)
    run(tmp_path, "gate", 1, 80.0, 3.0, 4.0)
    found = cells(tmp_path)
    assert (found[SPEED], found[WORK], found["peak memory, GB"]) == ("-", "-", "4.00")
