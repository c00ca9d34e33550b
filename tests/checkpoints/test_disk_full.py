"""A full disk ends a run with one line; when there is space again, the same command resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sinks.cli import main
from sinks.record import RunFolder
from sinks.record.atomic import PARTIAL
from tests.cli.small import ROOT, SMALL, fit, weights, without_clocks

EVERY_2 = ["--checkpoints.interval", "2"]
# In a file system of its own: a run that fills up, what it left, and the same run when there is space again.
DRIVER = """
import contextlib, io, json, os, shutil, sys
from pathlib import Path
from sinks.cli import main
disk, out, leave, *arguments = sys.argv[1:]
run = Path(disk, "run")
fill = ["--trainer.callbacks", "tests.faults.phases.Fill", "--trainer.callbacks.step", "3"]
fill += ["--trainer.callbacks.file", f"{disk}/filler", "--trainer.callbacks.leave", leave]
command = ["fit", *arguments, "--run.dir", str(run)]
with contextlib.redirect_stderr(io.StringIO()) as errors:
    code = main([*command, *fill])
left = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
os.remove(f"{disk}/filler")
again = main(command)
shutil.copytree(run, out, symlinks=True)
print(json.dumps({"code": code, "error": errors.getvalue(), "left": left, "again": again}))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("undisturbed") / "run", *EVERY_2)


def on_a_small_disk(command: list[str], disk: Path) -> subprocess.CompletedProcess[str]:
    """A command that sees 1.5 MiB of memory as the file system at `disk`."""
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1536k tmpfs {disk} && exec "$@"'
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", *command], env=environment, capture_output=True, text=True
    )


def test_metrics_that_cannot_be_written_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run/metrics.jsonl"
    file.parent.mkdir()
    file.symlink_to("/dev/full")
    assert main(["fit", *SMALL, *EVERY_2, "--run.dir", str(file.parent)]) == 2
    error = f"{file} could not be written (No space left on device): free space, then the same command starts again\n"
    assert capsys.readouterr().err == f"sinks: error: {error}"


# Bytes that are left after step 3; what of the checkpoint of step 4 then finds no space.
@pytest.mark.parametrize(
    ("leave", "what"), [(100_000, "/checkpoints/step00000004.ckpt could"), (0, "")], ids=["checkpoint", "everything"]
)
def test_a_full_disk_gets_one_line_and_the_same_command_resumes(
    leave: int, what: str, undisturbed: RunFolder, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    if (tried := on_a_small_disk(["true"], disk)).returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    disk.rmdir()
    command = [sys.executable, "-c", DRIVER, str(disk), str(tmp_path / "out"), str(leave), *SMALL, *EVERY_2]
    done = on_a_small_disk(command, disk)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 2
    assert result["error"].startswith(f"sinks: error: {disk}/run{what}")
    assert "No space left on device" in result["error"]
    assert result["error"].endswith("free space, then the same command resumes from step00000002.ckpt\n")
    assert result["error"].count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not [name for name in result["left"] if name.endswith(PARTIAL)]
    assert "checkpoints/step00000002.ckpt" in result["left"]
    assert "checkpoints/step00000004.ckpt" not in result["left"]
    assert result["again"] == 0
    resumed = RunFolder(tmp_path / "out")
    assert without_clocks(resumed.metrics()) == without_clocks(undisturbed.metrics())
    assert resumed.statistics("train").steps.tolist() == undisturbed.statistics("train").steps.tolist()
    assert all(torch.equal(w, weights(resumed)[name]) for name, w in weights(undisturbed).items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_a_full_disk_is_one_line_of_two_processes(strategy: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if (tried := on_a_small_disk(["true"], disk)).returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    disk.rmdir()
    sharded = ["--trainer.strategy=sinks.parallel.strategy.Sharded", "--trainer.strategy.replicas=1"]
    spread = sharded if strategy == "sharded" else ["--trainer.strategy=ddp"]
    fill = ["--trainer.callbacks=tests.faults.phases.Fill", "--trainer.callbacks.step=3"]
    fill += [f"--trainer.callbacks.file={disk}/filler", "--trainer.callbacks.leave=100000"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = ["sinks", "fit", *SMALL, *EVERY_2, *spread, *fill, "--trainer.devices=2", "--data.batch_size=2"]
    done = on_a_small_disk([*launcher, *command, "--run.dir", f"{disk}/run"], disk)
    error = f"sinks: error: {disk}/run/checkpoints/step00000004.ckpt could not be written (No space left on device): "
    # torchrun ends a process that is slower to say so than the other was to end.
    assert done.stderr.count(f"{error}free space, then the same command resumes from step00000002.ckpt\n") in (1, 2)
    assert "sinks/cli" not in done.stderr  # no traceback of ours
