"""experiments/ray/launch.py passes a command on as a task, and its exit code back. With a stand-in for Ray, which is no
dependency; CHANGELOG.md says with which Ray it was tried."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments/ray/launch.py"
STAND_IN = """
import json, pathlib
class Task:
    def __init__(self, function): self.function = function
    def options(self, **options):
        pathlib.Path("options.json").write_text(json.dumps(options))
        return self
    def remote(self, *arguments): return lambda: self.function(*arguments)
def remote(**options): return Task
def init(address, log_to_driver): assert address == "auto"
def get(task): return task()
def cancel(task): pass
"""


@pytest.mark.parametrize("code", [0, 3])
def test_the_command_runs_here_with_its_exit_code(tmp_path: Path, code: int) -> None:
    (tmp_path / "ray.py").write_text(STAND_IN)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_CPUS": "4", "RAY_GPUS": "1"}
    command = [sys.executable, SCRIPT, "sh", "-c", f'pwd > "$1"; exit {code}', "sh", "where am i"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert Path((tmp_path / "where am i").read_text().strip()) == tmp_path.resolve()
    assert (tmp_path / "options.json").read_text() == '{"num_cpus": 4.0, "num_gpus": 1.0}'
