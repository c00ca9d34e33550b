"""The sbatch file can be submitted: its shell, its directives, and the command it starts."""

import re
import subprocess
from pathlib import Path

import pytest

from sinks.cli import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments/slurm/train.sbatch"


def directives() -> dict[str, str]:
    """Those that sbatch reads: it stops at the first line that is neither empty nor a comment."""
    head = SCRIPT.read_text().split("\nset -")[0]
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))


def test_directives_precede_the_first_command() -> None:
    assert len(directives()) == SCRIPT.read_text().count("#SBATCH")
    assert directives()["signal"].startswith("USR1@")
    assert "requeue" in directives()


def test_every_task_starts_a_run_that_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\n')
    srun.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_NAME": directives()["job-name"],
        "SLURM_NNODES": directives()["nodes"],
        "SLURM_NTASKS_PER_NODE": directives()["ntasks-per-node"],
        "SLURM_CPUS_PER_TASK": directives()["cpus-per-task"],
    }
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    kill, _, program, *arguments = done.stdout.splitlines()
    assert kill == "--kill-on-bad-exit=1"
    assert program == ".venv/bin/sinks"
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code == 0
    assert "num_nodes: 2" in capsys.readouterr().out
