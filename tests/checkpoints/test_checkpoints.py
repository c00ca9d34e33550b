"""Checkpoints are written atomically, `last.ckpt` always names one, and a folder of shards is read like a file."""

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import sinks.callbacks.checkpoints
import sinks.parallel.checkpoint_io
from sinks.cli import main
from sinks.parallel.checkpoint_io import read_checkpoint
from sinks.record import RunFolder
from sinks.record.atomic import PARTIAL, remove, remove_atomically, replacing
from sinks.record.checkpoints import INDEX, checkpoint_step
from sinks.runs import load_run
from tests.cli.small import SMALL, fit, weights, without_clocks
from tests.faults.processes import start_ranks

EVERY_2 = ("--checkpoints.interval", "2", "--trainer.precision", "32-true")


def names(run: RunFolder) -> set[str]:
    return {path.name for path in run.checkpoints.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("runs") / "run", *EVERY_2, "--checkpoints.keep", "3")


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


# -- which, and when --------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_the_link_names_the_last(finished: RunFolder, tmp_path: Path) -> None:
    assert names(finished) == {"step00000002.ckpt", "step00000004.ckpt", "step00000006.ckpt", "last.ckpt"}
    assert os.readlink(finished.last_link) == "step00000006.ckpt"
    assert [step_of(path) for path in sorted(finished.checkpoints.iterdir())] == [6, 2, 4, 6]
    assert names(fit(tmp_path / "run", *EVERY_2)) == {"step00000006.ckpt", "last.ckpt"}


def test_the_last_step_has_a_checkpoint_and_a_validation_whatever_the_intervals(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "--checkpoints.interval", "4", "--trainer.val_check_interval", "4")
    assert step_of(run.last_checkpoint) == 6
    assert run.series("validation/loss")[0].tolist() == [4, 6]
    assert run.statistics("validation").steps.tolist() == [4, 6]


def test_a_checkpoint_that_falls_on_a_validation_is_taken_after_it(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "--checkpoints.interval", "3", "--checkpoints.keep", "2")
    state = torch.load(run.checkpoints / "step00000003.ckpt", weights_only=True)
    assert state["callbacks"]["RunRecorder"]["validated_at"] == 3


def test_no_checkpoints_where_they_are_switched_off(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "--trainer.enable_checkpointing", "false")
    assert not run.checkpoints.exists()


@pytest.mark.parametrize("option", ["interval", "keep"])
def test_a_number_below_1_gets_one_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, "--run.dir", str(tmp_path / "run"), f"--checkpoints.{option}", "0"]) == 2
    error = capsys.readouterr().err
    assert f"checkpoints.{option} is 0, but must be at least 1" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# -- written atomically ------------------------------------------------------------------------------------------


def test_the_old_one_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with suppress(Killed), replacing(file) as temporary:
        temporary.write_text("ne")
        assert file.read_text() == "old"
        raise Killed
    assert file.read_text() == "old"
    with replacing(file) as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("new")
    assert (file / "part").read_text() == "new"
    with replacing(file) as temporary:
        temporary.write_text("newest")
    assert file.read_text() == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_removed_folder_is_renamed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)  # as if killed there
    remove_atomically(tmp_path / "shards")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert left.name.endswith(PARTIAL)


class Killed(BaseException):
    """Simulates the end of the process."""


@pytest.mark.parametrize("function", ["write_file", "point", "remove_checkpoints"])
def test_a_run_interrupted_anywhere_in_saving_resumes_as_if_it_had_not_been(
    function: str, finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sinks.parallel.checkpoint_io if function == "write_file" else sinks.callbacks.checkpoints
    original = getattr(module, function)
    calls = []

    def break_off(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise Killed
        original(*arguments)

    monkeypatch.setattr(module, function, break_off)
    with pytest.raises(Killed):
        main(["fit", *SMALL, "--run.dir", str(tmp_path / "run"), *EVERY_2])
    monkeypatch.undo()
    run = RunFolder(tmp_path / "run")
    assert step_of(run.last_checkpoint) == (2 if function == "write_file" else 4)
    (run.checkpoints / f".step00000004.ckpt.1{PARTIAL}").write_text("what a kill leaves")
    resumed = fit(tmp_path / "run", *EVERY_2)
    assert names(resumed) == {"step00000006.ckpt", "last.ckpt"}
    assert without_clocks(resumed.metrics()) == without_clocks(finished.metrics())
    assert all(torch.equal(w, weights(resumed)[name]) for name, w in weights(finished).items())


# -- unreadable checkpoints -------------------------------------------------------------------------------------


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch run-by-a-checkpoint",)


def error_of(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["validate", *SMALL, "--run.dir", str(tmp_path), "--ckpt_path", str(checkpoint)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(checkpoint) in error
    return error


def test_a_damaged_file_gets_one_line(finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cut.ckpt"
    file.write_bytes(finished.last_checkpoint.read_bytes()[:-1000])
    assert "cannot be read as a checkpoint" in error_of(file, tmp_path, capsys)


def test_a_file_that_would_run_code_does_not(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.load(finished.last_checkpoint, weights_only=True) | {"evil": Evil()}, "evil.ckpt")
    assert "cannot be read as a checkpoint" in error_of(tmp_path / "evil.ckpt", tmp_path, capsys)
    assert not Path("run-by-a-checkpoint").exists()


# -- folders of shards ------------------------------------------------------------------------------------------

SHARDED = ("--trainer.strategy=sinks.parallel.strategy.Sharded", "--trainer.strategy.save_distributed_checkpoint=true")


def fit_on_two(folder: Path, *more: str) -> tuple[list[int], str]:
    """A run on two processes with the same global batch: exit codes, and their output."""
    arguments = ["fit", *SMALL, *EVERY_2, "--checkpoints.keep=3", "--data.batch_size=2", "--trainer.devices=2"]
    ranks = start_ranks([*arguments, "--run.dir", str(folder), *more], folder.with_name(f"{folder.name}.log"))
    return [rank.wait() for rank in ranks], "".join(rank.output for rank in ranks)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("shards") / "run"
    codes, output = fit_on_two(folder, *SHARDED)
    assert codes == [0, 0], output
    return RunFolder(folder)


def interrupted(run: RunFolder, folder: Path, step: int = 4) -> Path:
    """A copy of a run as it was after a step."""
    shutil.copytree(run.path, folder, symlinks=True)
    for newer in (path for path in RunFolder(folder).checkpoint_files() if (checkpoint_step(path) or 0) > step):
        remove(newer)
    sinks.callbacks.checkpoints.point(folder / "checkpoints/last.ckpt", Path(f"step{step:08d}.ckpt"))
    (folder / "summary.json").unlink()
    return folder


def assert_close(run: RunFolder, other: RunFolder) -> None:
    """Weights and optimizer states agree up to the rounding of sums over processes.

    AdamW divides it by roots of second moments, which may be as small: a twentieth of a step's update is allowed.
    """
    ours, theirs = (read_checkpoint(each.last_checkpoint.resolve()) for each in (run, other))
    assert ours["global_step"] == theirs["global_step"] == 6
    for name, weight in ours["state_dict"].items():
        torch.testing.assert_close(weight, theirs["state_dict"][name], rtol=1e-5, atol=1e-5)
    mine, their = ours["optimizer_states"][0], theirs["optimizer_states"][0]
    pairs = zip(*([i for g in state["param_groups"] for i in g["params"]] for state in (mine, their)), strict=True)
    for one, two in pairs:
        for part in ("step", "exp_avg", "exp_avg_sq"):
            scale = float(mine["state"][one][part].abs().max())
            torch.testing.assert_close(
                mine["state"][one][part], their["state"][two][part], rtol=1e-5, atol=1e-5 * scale, msg=f"{one} {part}"
            )
    assert run.series("train/loss")[1] == pytest.approx(other.series("train/loss")[1], rel=1e-5)
    assert ours["Backcopy"] == theirs["Backcopy"]


def test_shards_of_two_processes_resume_in_one(shards: RunFolder, finished: RunFolder, tmp_path: Path) -> None:
    assert_close(fit(interrupted(shards, tmp_path / "run"), *EVERY_2), finished)


GATHERED = (SHARDED[0], "--trainer.strategy.save_distributed_checkpoint=false")
DDP = ("--trainer.strategy=ddp",)


@pytest.mark.parametrize(
    ("source", "strategy"),
    [
        ("finished", SHARDED),
        ("shards", SHARDED),
        pytest.param("finished", DDP, marks=pytest.mark.slow),
        pytest.param("finished", GATHERED, marks=pytest.mark.slow),
        pytest.param("shards", DDP, marks=pytest.mark.slow),
        pytest.param("shards", GATHERED, marks=pytest.mark.slow),
    ],
)
def test_files_and_shards_resume_on_two(
    source: str, strategy: tuple[str, ...], finished: RunFolder, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = interrupted(request.getfixturevalue(source), tmp_path / "run")
    codes, output = fit_on_two(folder, *strategy)
    assert codes == [0, 0], output
    assert_close(RunFolder(folder), finished)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["finished", "shards"])
def test_files_and_shards_resume_sharded_in_one(
    source: str, finished: RunFolder, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = interrupted(request.getfixturevalue(source), tmp_path / "run")
    (alone,) = start_ranks(["fit", *SMALL, *EVERY_2, *SHARDED, "--run.dir", str(folder)], tmp_path / "log", ranks=1)
    assert alone.wait() == 0, alone.output
    assert_close(RunFolder(folder), finished)


def test_shards_are_consolidated_loaded_and_validated(
    shards: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "whole.ckpt"
    assert main(["consolidate", str(shards.path), "--out", str(out)]) == 0
    whole = torch.load(out, weights_only=True)
    loaded = load_run(shards.path).model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in whole["state_dict"].items())
    assert sorted(whole["optimizer_states"][0]["state"]) == list(range(len(whole["state_dict"])))
    losses = []
    for checkpoint in (out, shards.last_checkpoint.resolve()):
        arguments = ["validate", *SMALL, "--run.dir", str(tmp_path), "--ckpt_path", str(checkpoint)]
        assert main(arguments) == 0
        losses.append(capsys.readouterr().out.split("validation/loss ")[1].split()[0])
    assert losses[0] == losses[1]
    assert float(losses[0]) == pytest.approx(shards.summary()["val_loss"], rel=1e-5)


def test_consolidating_a_file_gets_one_line(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", str(finished.path)]) == 2
    assert "is one file already" in capsys.readouterr().err


def test_shards_of_another_architecture_are_rejected_in_one_process_and_on_two(
    shards: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", "Gated", "--model.norm_rank", "2", "--ckpt_path", str(shards.last_checkpoint.resolve())]
    message = "the checkpoint is of another architecture: decoder.blocks.0.attention.gate"
    assert main(["fit", *SMALL, "--run.dir", str(tmp_path / "one"), *more]) == 2
    assert message in capsys.readouterr().err
    codes, output = fit_on_two(tmp_path / "two", *SHARDED, *more)
    assert codes == [2, 2], output
    assert output.count(message) == 2
    assert "Traceback" not in output


@pytest.mark.parametrize("place", ["index", "rest", "value"])
def test_shards_that_would_run_code_do_not(
    place: str,
    shards: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "evil.ckpt"
    shutil.copytree(shards.last_checkpoint.resolve(), folder)
    if place == "index":
        index = pickle.loads((folder / INDEX).read_bytes())
        index.planner_data["evil"] = Evil()
        (folder / INDEX).write_bytes(pickle.dumps(index))
    elif place == "value":
        state = torch.load(shards.last_checkpoint / "meta.pt", weights_only=True)
        shutil.rmtree(folder)
        dcp.save(
            {
                "state_dict": read_checkpoint(shards.last_checkpoint, weights_alone=True)["state_dict"],
                "optimizer_0": {"evil": Evil()},
            },
            checkpoint_id=folder,
        )
        torch.save(state, folder / "meta.pt")
    else:
        torch.save(torch.load(folder / "meta.pt", weights_only=True) | {"evil": Evil()}, folder / "meta.pt")
    assert main(["validate", *SMALL, "--run.dir", str(tmp_path), "--ckpt_path", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "cannot be read as a checkpoint" in error
    assert error.count("\n") == 1
    assert not Path("run-by-a-checkpoint").exists()


def test_a_run_killed_before_it_removed_an_older_checkpoint_removes_it(tmp_path: Path) -> None:
    folder = fit(tmp_path / "run", "--checkpoints.interval=3")
    newest, older = folder.checkpoints / "step00000006.ckpt", folder.checkpoints / "step00000003.ckpt"
    users = folder.checkpoints / "step00000002.ckpt"
    assert not older.exists()
    for file in (older, users):
        shutil.copy(newest, file)
    (folder.path / "summary.json").unlink()
    fit(tmp_path / "run", "--checkpoints.interval=3")
    assert folder.finished
    assert sorted(file.name for file in folder.checkpoints.iterdir()) == ["last.ckpt", users.name, newest.name]
