"""A signal ends a run after a step, with a checkpoint; started again, it ends as if it had never been stopped."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from sinks.cli import main
from sinks.record import RunFolder
from tests.cli.small import SMALL, weights, without_clocks
from tests.faults.processes import callbacks, start, start_ranks, start_slurm_tasks

# Checkpoints are so rare that only the signal's matters, and step 3 is followed by a validation.
DROPPING = ["--model.feed_forward", "tests.faults.parts.DroppedGELU", "--trainer.max_steps", "8"]
ARGUMENTS = ["fit", *SMALL, *DROPPING]


def test_what_is_switched_off_in_lightning_is_there() -> None:
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def run(*arguments: str) -> int:
    """The exit code of `sinks fit` in this process."""
    try:
        return main([*ARGUMENTS, *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run("--run.dir", str(folder), *callbacks(folder, every=8)) == 0
    return RunFolder(folder)


def assert_same(one: RunFolder, other: RunFolder) -> None:
    assert without_clocks(one.metrics()) == without_clocks(other.metrics())
    for stage in ("train", "validation"):
        ours, theirs = one.statistics(stage), other.statistics(stage)
        assert ours.steps.tolist() == theirs.steps.tolist()
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 5)])
def test_a_stopped_run_resumes_as_if_never_stopped(
    signum: signal.Signals, step: int, never_stopped: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    before = signal.getsignal(signum)
    signaled = callbacks(folder, ("Signal", {"signum": int(signum), "step": step}), every=8)
    assert run("--run.dir", str(folder), *signaled) == 128 + signum
    line = f"stopped by {signum.name} at step {step}, checkpoint saved: the same command resumes\n"
    assert capsys.readouterr().out == line
    assert signal.getsignal(signum) is before
    assert not RunFolder(folder).finished
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
    assert run("--run.dir", str(folder), *callbacks(folder, every=8)) == 0
    assert_same(RunFolder(folder), never_stopped)


def test_accumulated_gradients_are_not_split(tmp_path: Path) -> None:
    accumulating = ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "6"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*accumulating, "--run.dir", str(whole), *callbacks(whole, every=8)) == 0
    signaled = callbacks(cut, ("Signal", {"signum": 15, "step": 5}), every=8)
    assert run(*accumulating, "--run.dir", str(cut), *signaled) == 143
    assert torch.load(cut / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert run(*accumulating, "--run.dir", str(cut), *callbacks(cut, every=8)) == 0
    assert_same(RunFolder(cut), RunFolder(whole))


def test_an_interrupted_run_says_so_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    assert run("--run.dir", str(folder), *callbacks(folder, ("Signal", {"signum": 2, "step": 5}))) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "sinks fit: interrupted\n"
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    twice = ("Signal", {"signum": 15, "step": 3, "again_after_s": 2.1})
    killed = start([*ARGUMENTS, "--run.dir", str(folder), *callbacks(folder, twice, every=8)], tmp_path / "log")
    assert killed.wait() == -signal.SIGTERM
    assert killed.output == ""
    assert not (folder / "checkpoints").exists()
    assert not RunFolder(folder).finished


def test_a_run_without_checkpoints_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    signaled = callbacks(folder, ("Signal", {"signum": 15, "step": 3}))
    assert run("--trainer.enable_checkpointing=false", "--run.dir", str(folder), *signaled) == 143
    line = "stopped by SIGTERM at step 3, nothing saved, because the run keeps no checkpoints\n"
    assert capsys.readouterr().out == line


def test_a_checkpoint_callback_of_the_users_own_saves_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    own = {"dirpath": str(folder / "own"), "every_n_train_steps": 100, "save_last": True}
    entries = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": own},
        {"class_path": "tests.faults.parts.Signal", "init_args": {"signum": 15, "step": 3}},
    ]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": entries}}))
    assert run("--run.dir", str(folder), "-c", str(tmp_path / "own.yaml")) == 143
    assert torch.load(folder / "own/last.ckpt", weights_only=True)["global_step"] == 3


def test_validate_is_ended_as_any_program(never_stopped: RunFolder, tmp_path: Path) -> None:
    signaled = callbacks(tmp_path / "run", ("Signal", {"signum": 15, "step": 0}))
    arguments = [
        "validate",
        "-c",
        str(never_stopped.config_file),
        *signaled,
        "--ckpt_path",
        str(never_stopped.last_checkpoint),
    ]
    run = start(arguments, tmp_path / "log")
    assert run.wait() == -signal.SIGTERM, run.output
    assert not (never_stopped.path / "validation").exists()


def test_ranks_stop_at_the_same_step_whoever_gets_the_signal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ranks = start_ranks(
        [
            *ARGUMENTS,
            *("--trainer.devices=2", "--trainer.strategy=ddp", "--run.dir", str(folder)),
            *callbacks(folder, ("Signal", {"signum": 15, "step": 3, "rank": 1}), every=8),
        ],
        tmp_path / "log",
    )
    assert [rank.wait() for rank in ranks] == [143, 143], [rank.output for rank in ranks]
    # The loss is reduced every two steps; that is where they agree.
    assert "stopped by SIGTERM at step 4, checkpoint saved" in ranks[0].output
    assert "stopped" not in ranks[1].output
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_ranks_whose_time_is_up_stop_at_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limited = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_time=00:00:10:00"]
    late = callbacks(folder, ("Late", {"step": 2, "rank": 1}), every=8)
    ranks = start_ranks([*ARGUMENTS, *limited, "--run.dir", str(folder), *late], tmp_path / "log")
    assert [rank.wait() for rank in ranks] == [75, 75], [rank.output for rank in ranks]
    assert "stopped by trainer.max_time at step 4, checkpoint saved" in ranks[0].output
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_slurm_job_is_requeued_and_resumes(tmp_path: Path) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    scontrol.chmod(0o755)
    environment = {"PATH": f"{scontrol.parent}:/usr/bin:/bin"}
    arguments = [*ARGUMENTS, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    at_once = ("Signal", {"signum": 10, "step": 3, "rank": 1}), ("Signal", {"signum": 10, "step": 5, "rank": 0})
    reference = start_slurm_tasks(
        [*arguments, "--run.dir", str(whole), *callbacks(whole, every=8)], tmp_path / "whole.log", environment
    )
    assert [task.wait() for task in reference] == [0, 0], [task.output for task in reference]
    first = start_slurm_tasks(
        [*arguments, "--run.dir", str(stopped), *callbacks(stopped, *at_once, every=8)],
        tmp_path / "first.log",
        environment,
    )
    assert [task.wait() for task in first] == [138, 138], [task.output for task in first]
    (call,) = (tmp_path / "calls").read_text().splitlines()
    job = call.removeprefix("requeue ")
    assert job.isdigit()
    assert "stopped by SIGUSR1 at step 4, checkpoint saved" in first[0].output
    assert f"SLURM job {job} is in the queue again" in first[0].output
    assert sorted(p.name for p in (stopped / "checkpoints").iterdir()) == ["last.ckpt", "step00000004.ckpt"]
    assert not list(Path.cwd().glob("hpc_ckpt*"))
    second = start_slurm_tasks(
        [*arguments, "--run.dir", str(stopped), *callbacks(stopped, every=8)],
        tmp_path / "second.log",
        environment | {"SLURM_RESTART_COUNT": "1"},
    )
    assert [task.wait() for task in second] == [0, 0], [task.output for task in second]
    assert_same(RunFolder(stopped), RunFolder(whole))


def test_a_job_that_cannot_be_requeued_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sinks.callbacks.preemption import requeue

    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    output = capsys.readouterr().out
    assert output.startswith("SLURM job 12_3 cannot be requeued (")
    assert output.endswith("): submit it again, it resumes\n")
