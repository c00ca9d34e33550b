"""The sbatch files can be submitted: their shell, their directives, and the commands they start."""

import re
import subprocess
from pathlib import Path

import pytest

from sinks.cli import main

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "experiments/slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))


def directives(script: Path) -> dict[str, str]:
    """Those that sbatch reads: it stops at the first line that is neither empty nor a comment."""
    head = script.read_text().split("\nset -")[0]
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))


def executable(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_directives_precede_the_first_command(script: Path) -> None:
    found = directives(script)
    assert len(found) == script.read_text().count("\n#SBATCH")
    assert found["signal"].startswith("USR1@")
    assert "requeue" in found


def test_every_task_starts_a_run_that_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executable(tmp_path / "srun", 'for argument; do echo "$argument"; done')
    found = directives(SLURM / "train.sbatch")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_NAME": found["job-name"],
        "SLURM_NNODES": found["nodes"],
        "SLURM_NTASKS_PER_NODE": found["ntasks-per-node"],
        "SLURM_CPUS_PER_TASK": found["cpus-per-task"],
    }
    done = subprocess.run(["bash", SLURM / "train.sbatch"], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    kill, _, program, *arguments = done.stdout.splitlines()
    assert kill == "--kill-on-bad-exit=1"
    assert program == ".venv/bin/sinks"
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code == 0
    assert "num_nodes: 2" in capsys.readouterr().out


def test_a_task_of_an_array_runs_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line takes a number from another run as `sinks grid` prints it, and its paths may have spaces."""
    monkeypatch.chdir(ROOT)
    ablation = "experiments/ablations/backcopy.yaml"
    options = ["--seeds=0", "--variants=baseline,clip-residual", "--runs", str(tmp_path / "my runs")]
    assert main(["grid", ablation, *options, "--commands", "true"]) == 0
    lines = capsys.readouterr().out
    (tmp_path / "commands.txt").write_text(lines)
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    executable(binaries / "srun", 'exec "$@"')
    executable(binaries / "sinks", 'if [ "$1" = value ]; then echo 7.5; else for a; do echo "$a"; done; fi')
    for number, line in enumerate(lines.splitlines(), 1):
        environment = {"PATH": "/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "1", "SLURM_ARRAY_TASK_ID": str(number)}
        command = ["bash", SLURM / "array.sbatch", tmp_path / "commands.txt"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        arguments = done.stdout.splitlines()
        assert arguments[0] == "fit"
        variant = "clip-residual" if "residual_threshold" in line else "baseline"
        assert f"--run.dir={tmp_path}/my runs/backcopy/{variant}/seed0" in arguments
        assert ("--model.residual_threshold=7.5" in arguments) == (variant == "clip-residual")
