"""The complete command as on a bare machine, at tiny sizes on a CPU: no litdata, omegaconf, jsonargparse, pyarrow."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report.goals import GOALS
from benchmarks.gpu_report.stages import STAGES
from tests.test_imports import BLOCK, ROOT


def started(folder: Path, *more: str, **variables: str) -> subprocess.Popen[str]:
    """`python -m benchmarks.gpu_report --dry` without the packages that a bare machine lacks, also in subprocesses."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(hidden), str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "SINKS_COMMIT": "c0ffee"} | variables
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--dry", "--output", str(folder / "out"), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def report(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The same, ended."""
    process = started(folder, *more)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-report")
    done = report(folder, "--archive", str(folder / "report.tar.gz"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{stage.file}: done" for stage in STAGES]
    return folder


def results(folder: Path) -> dict[str, Any]:
    return {stage.letter: json.loads((folder / "out" / f"{stage.file}.json").read_text()) for stage in STAGES}


def test_every_stage_passes_and_measures_something(folder: Path) -> None:
    found = {letter: record["result"] for letter, record in results(folder).items()}
    assert all(check["passed"] for row in found["a"]["rows"] for check in row["checks"].values())
    assert {"output", "gradient of q", "gradient of sink", "gradient of gate", "entropy", "key_mass"} <= found["a"][
        "rows"
    ][0]["checks"].keys()
    assert {"attention", "key_mass", "norm"} <= {row["table"] for row in found["b"]["rows"]}
    assert {row["kernel"] for row in found["c"]["best"]} == {
        "forward",
        "backward_keys",
        "backward_queries",
        "key_mass",
    }
    rows = {row["name"]: row for row in found["d"]["rows"]}
    llama = "Hugging Face Llama, SDPA"
    assert {"baseline", "gated-both", llama, f"{llama}, layers compiled"} <= rows.keys()
    assert not [row for row in rows.values() if "refused" in row]
    assert rows[llama]["parameters"] == rows["baseline"]["parameters"]
    assert "statistics_overhead" in rows["baseline"]
    for run in found["e"]["runs"]:
        assert run["curves"]["tokens"] == [2 * 4 * 24, 4 * 4 * 24]
        assert all(0 <= ratio <= 1 for ratio in run["curves"]["sink_ratio_0.3"])
        assert all(score > 0 for score in run["curves"]["residual_sink_score"])
    alone, *spread = found["f"]["rows"]
    assert [row["name"] for row in spread] == ["ddp", "fsdp2"]
    for row in spread:
        assert row["processes"] == 2
        assert row["losses_distance"] < 1e-2
        assert row["summary"]["first_token_mass"] == pytest.approx(alone["summary"]["first_token_mass"], rel=1e-2)


def test_provenance_is_recorded_and_nothing_is_left_out(folder: Path) -> None:
    for record in results(folder).values():
        assert record["state"] == "done"
        assert record["dry"]
        (command,) = record["commands"]
        assert command["commit"]
        assert command["versions"]["torch"]
        assert not record["result"].get("left_out")


def test_the_report_contains_every_stage_and_a_dry_run_reaches_no_goal(folder: Path) -> None:
    page = (folder / "out" / "report.md").read_text()
    assert "A dry run" in page
    for stage in STAGES:
        assert f"\n## {stage.letter}. " in page
    goals = page.split("## Goals")[1].split("\n## ")[0]
    assert goals.count("| not measured | a dry run |") == len(GOALS)


def test_the_archive_contains_the_results(folder: Path) -> None:
    with tarfile.open(folder / "report.tar.gz") as stream:
        names = stream.getnames()
    wanted = {"report.md", *(f"{stage.file}{suffix}" for stage in STAGES for suffix in (".json", ".md"))}
    assert {f"gpu-report/{name}" for name in wanted} <= set(names)
    assert "gpu-report/work/e-training/baseline/metrics.jsonl" in names
    assert not [name for name in names if name.endswith((".bin", ".safetensors"))]


def test_the_same_command_again_runs_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("?-*.json")}
    done = report(folder)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"{stage.file}: done before" for stage in STAGES]
    assert {path: path.stat().st_mtime_ns for path in before} == before
