"""Recorded runs: small, without paths of the machine, the same report, and taken as finished by a grid."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sinks.cli import main
from sinks.cli.grid import planned, read_ablation
from sinks.cli.same_runs import take_over
from sinks.record import RunFolder
from sinks.record.recorded import LARGEST, VALIDATIONS, record
from sinks.report import compare, load_ablation, tables
from tests.cli.small import ROOT, fit
from tests.cli.test_grid import make
from tests.cli.test_mistakes import one_line
from tests.report.synthetic import BACKCOPY, Levels, write_ablation, write_run

CONFIGS = [f"experiments/{file}" for file in ("models/backcopy.yaml", "data/backcopy.yaml", "trainers/cpu.yaml")]


PROBE = {
    "text": "validation set",
    "residual": {
        "loss": 1.23456789,
        "roles": {"all|ordinary": None},
        "edits": {
            "all|ordinary|direct|sink": {
                "loss": 2.0, "sums": [0.1] * 99, "change": {"mean": 0.123456789, "low": None, "high": None},
            },
            "head|none": None,
        },
    },
}  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    runs = write_ablation(tmp_path / "runs/backcopy", {n: BACKCOPY[n] for n in ("baseline", "gated-norm")})
    (runs / "baseline/seed0/checkpoints").mkdir()
    (runs / "baseline/seed0/checkpoints/last.ckpt").write_bytes(b"0" * 10**6)
    (runs / "baseline/seed0/probes").mkdir()
    (runs / "baseline/seed0/probes/a.json").write_text(json.dumps(PROBE))
    (runs / "transfer.json").write_text(json.dumps({"queries": {}, "comparisons": []}))
    assert main(["record", str(runs), str(tmp_path / "results/backcopy")]) == 0
    return runs, tmp_path / "results/backcopy"


def test_a_report_of_recorded_runs_has_the_same_numbers(recorded: tuple[Path, Path]) -> None:
    runs, results = recorded
    assert main(["report", str(results)]) == 0
    ours, theirs = compare(load_ablation(results)), compare(load_ablation(runs))
    assert tables.results(ours) == tables.results(theirs)
    assert {f.name for f in (results / "figures").iterdir()} >= {"first_token_mass.png", "sorted_dimensions.png"}
    one, other = (RunFolder(root / "baseline/seed0") for root in (results / "runs", runs))
    for name, array in other.statistics().arrays.items():
        np.testing.assert_array_equal(one.statistics().arrays[name][-1], array[-1], err_msg=name)
    mass = "attention/first_token_mass"
    np.testing.assert_array_equal(one.statistics().arrays[mass], other.statistics().arrays[mass])


def test_a_recorded_run_is_small_and_names_no_place_of_the_machine(recorded: tuple[Path, Path]) -> None:
    runs, results = recorded
    files = [file for file in results.rglob("*") if file.is_file()]
    assert not any(str(runs.parent) in file.read_text(errors="ignore") for file in files)
    assert sum(file.stat().st_size for file in files) < 6 * LARGEST
    run = RunFolder(results / "runs/baseline/seed0")
    assert run.provenance()["command"][-1] == "runs/backcopy/baseline/seed0"
    kept = {"change": {"mean": 0.123457, "low": None, "high": None}}
    residual = PROBE["residual"] | {"loss": 1.23457, "edits": {"all|ordinary|direct|sink": kept, "head|none": None}}
    assert json.loads((run.path / "probes/a.json").read_text()) == PROBE | {"residual": residual}
    assert not (run.path / "checkpoints").exists()
    for name in ("ablation.yaml", "transfer.json"):
        assert (results / name).read_bytes() == (runs / name).read_bytes()


def test_of_many_validations_some_are_kept_the_first_and_the_last_too(tmp_path: Path) -> None:
    source = write_run(tmp_path / "long", "long", 0, Levels(), statistics=False)
    lines = [{"step": s, "validation/loss": 1 / s, "train/residual/p999": 1.0} for s in range(1, 402)]
    (source.path / "metrics.jsonl").unlink()
    source.append_metrics(lines)
    record(source, RunFolder(tmp_path / "copy"), "runs/long")
    kept = RunFolder(tmp_path / "copy").metrics()
    assert (len(kept), kept[0]["step"], kept[-1]["step"]) == (VALIDATIONS, 1, 401)
    assert kept[9] == {"step": 74, "validation/loss": 0.0135135}


def test_what_would_overwrite_another_run_is_rejected(
    recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, results = recorded
    error = one_line(["record", str(results / "runs"), str(results)], capsys)
    assert f"out is {results}, where the runs of {results / 'runs'} are: give another folder" in error
    provenance = json.loads((runs / "baseline/seed1/provenance.json").read_text())
    write = RunFolder(runs / "baseline/seed1").write_provenance
    write(provenance | {"config_fingerprint": "another"})
    assert "holds a run of another configuration" in one_line(["record", str(runs), str(results)], capsys)


def test_runs_of_two_machines_and_precisions_are_named_in_the_first_line(recorded: tuple[Path, Path]) -> None:
    runs, _ = recorded
    folder = RunFolder(runs / "baseline/seed1")
    folder.write_provenance(folder.provenance() | {"device": "another machine"})
    for seed, precision in ((0, "32-true"), (1, "bf16-mixed")):
        RunFolder(runs / f"gated-norm/seed{seed}").write_config(f"trainer: {{precision: {precision}}}")
    assert main(["report", str(runs)]) == 0
    first = (runs / "report.md").read_text().splitlines()[4]  # after the title and the question
    assert "of 2 devices (another machine, synthetic machine) and of 2 precisions (32-true, bf16-mixed)" in first


def ablation(file: Path, name: str, variants: dict[str, Any]) -> None:
    # Small enough to train: test options are part of the arguments.
    options = dict(option.removeprefix("--").split("=") for option in TINY)
    described = {
        variant: {"config": "experiments/variants/baseline.yaml", "arguments": options | more}
        for variant, more in variants.items()
    }
    file.write_text(yaml.safe_dump({"name": name, "configs": CONFIGS, "steps": 6, "seeds": [0], "variants": described}))


TINY = [
    "--model.architecture.d_model=16", "--model.architecture.ffn_hidden=24", "--data.context_length=12",
    "--data.batch_size=4", "--data.validation_rows=10", "--trainer.val_check_interval=3",
]  # fmt: skip


def test_a_grid_takes_over_what_is_finished_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    source = fit(tmp_path / "results/first/runs/plain/seed0", *TINY, "--seed_everything=0", "--data.seed=0")
    assert source.summary()["variant"] == "Baseline"
    ablation(tmp_path / "second.yaml", "second", {"same": {}})
    grid = ["grid", str(tmp_path / "second.yaml"), f"--runs={tmp_path / 'runs'}"]
    before = shutil.copytree(source.path, tmp_path / "before")
    assert main([*grid, f"--recorded={tmp_path / 'results'}"]) == 0
    captured = capsys.readouterr()
    assert f"same seed 0 is finished in {source.path}: copied" in captured.err
    assert "1 of them finished" in captured.err
    assert captured.out.splitlines()[-1] == str(tmp_path / "runs/second")
    taken = RunFolder(tmp_path / "runs/second/same/seed0")
    assert taken.summary() == source.summary() | {"variant": "same"}
    assert sorted(p.name for p in before.iterdir()) == sorted(p.name for p in source.path.iterdir())
    # Runs of other seeds stay part of the ablation.
    (tmp_path / "runs/second/same/seed7").mkdir()
    (tmp_path / "runs/second/other/seed8").mkdir(parents=True)
    assert main(grid) == 0
    assert yaml.safe_load((tmp_path / "runs/second/ablation.yaml").read_text())["seeds"] == [0, 7]
    # Without recorded results, from the runs of another ablation; what differs in an option is another run.
    ablation(tmp_path / "third.yaml", "third", {"alike": {}, "other": {"model.optimization.lr": "1e-4"}})
    plan = planned(read_ablation(tmp_path / "third.yaml"), tmp_path / "runs/third", ["alike", "other"], [0, 1], 6)
    assert take_over(plan, [tmp_path / "runs"]) == [f"alike seed 0 is finished in {taken.path}: copied"]
    assert [run.done for run in plan] == [True, False, False, False]
    assert take_over(plan, [tmp_path / "runs"]) == []
    # A run that takes numbers from another is looked for once that one is finished.
    waiting = replace(plan[2], needs=plan[1].folder, measured={"model.optimization.lr": ("val_loss", 1.0)})
    assert take_over([waiting], [tmp_path / "runs"]) == []


def test_make_passes_recorded_results_on(tmp_path: Path) -> None:
    code, error, calls = make(tmp_path, "RECORDED=experiments/results")
    assert (code, error) == (0, "")
    assert "[--recorded=experiments/results]" in calls[0]
