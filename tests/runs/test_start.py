"""Nothing that is done to a run folder deletes, mixes or silently overwrites what is in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sinks.cli import main
from sinks.cli.consolidate import consolidate
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.checkpoints import INDEX, REST, is_complete
from sinks.record.fingerprint import reject_another_run
from sinks.record.folder import from_json
from sinks.runs import load_run
from sinks.runs.start import start_of
from sinks.runs.train import around
from tests.cli.small import SMALL, fit, weights, without_clocks
from tests.faults.processes import callbacks

KEPT = ["--checkpoints.keep", "2", "--trainer.precision", "32-true"]
EVERY_2 = [*KEPT, "--checkpoints.interval", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("whole") / "run", *EVERY_2)


@pytest.fixture(scope="module")
def broken_at_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended without a word after step 5, with checkpoints after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        main(["fit", *SMALL, "--run.dir", str(folder), *KEPT, *callbacks(folder, ("Break", {"step": 5}))])
    return folder


@pytest.fixture
def run(broken_at_5: Path, tmp_path: Path) -> RunFolder:
    """A copy of it, links kept."""
    return RunFolder(shutil.copytree(broken_at_5, tmp_path / "run", symlinks=True))


def content(folder: Path) -> dict[str, bytes]:
    """Every file's path and bytes, the lock's apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(run: RunFolder, other: RunFolder) -> None:
    assert without_clocks(run.metrics()) == without_clocks(other.metrics())
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(run).items())


def no_link(run: RunFolder) -> None:
    run.last_link.unlink()


def dangling_link(run: RunFolder) -> None:
    run.last_link.unlink()
    run.last_link.symlink_to("step00000009.ckpt")


def file_for_link(run: RunFolder) -> None:
    target = run.last_link.resolve()
    run.last_link.unlink()
    shutil.copy(target, run.last_link)


def restored_older_file(run: RunFolder) -> None:
    run.last_link.unlink()
    shutil.copy(run.checkpoints / "step00000002.ckpt", run.last_link)


def another_callbacks(run: RunFolder) -> None:
    file_for_link(run)
    for file in run.checkpoints.glob("step*"):
        file.unlink()


def older_link(run: RunFolder) -> None:
    run.last_link.unlink()
    run.last_link.symlink_to("step00000002.ckpt")


def truncated_copy(run: RunFolder) -> None:
    newest = run.checkpoints / "step00000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (no_link, "from step00000004.ckpt (there is no last.ckpt)"),
        (dangling_link, "from step00000004.ckpt (last.ckpt is incomplete)"),
        (file_for_link, "from step00000004.ckpt"),
        (restored_older_file, "from step00000004.ckpt"),
        (another_callbacks, "from last.ckpt"),
        (older_link, "from step00000004.ckpt"),
        (truncated_copy, "from step00000002.ckpt (last.ckpt is incomplete, step00000004.ckpt is incomplete)"),
    ],
)
def test_a_copied_folder_resumes_from_its_newest_complete_checkpoint(
    change: Callable[[RunFolder], None], line: str, run: RunFolder
) -> None:
    change(run)
    start = start_of(run, None, interval=2)
    assert start.line == f"resuming {run.path} {line}"
    assert start.checkpoint is not None
    assert start.checkpoint.name == line.split()[1]


def test_a_run_whose_link_is_lost_ends_as_if_it_had_not_been(
    run: RunFolder, whole: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    no_link(run)
    own = {"notes.txt": b"mine", "step2.ckpt": b"mine", "step00000003.ckpt": b"mine"}
    for name, data in own.items():
        (run.checkpoints / name).write_bytes(data)
    fit(run.path, *EVERY_2, "--checkpoints.keep", "1")
    assert f"resuming {run.path} from step00000004.ckpt (" in capsys.readouterr().out
    assert_same(run, whole)
    assert run.last_link.resolve().name == "step00000006.ckpt"
    # The user's own files stay among the checkpoints.
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "step00000006.ckpt", *own}
    assert all((run.checkpoints / name).read_bytes() == data for name, data in own.items())


def remove_checkpoints(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints)


def truncate_both(run: RunFolder) -> None:
    for file in run.checkpoints.glob("step*"):
        file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            remove_checkpoints,
            "has metrics up to step 4, but no checkpoint to resume from, although one is saved every 2",
        ),
        (truncate_both, "has no complete checkpoint by the name of last.ckpt or step.*, only last.ckpt, step00000002"),
    ],
)
def test_a_run_that_cannot_go_on_does_not_start_again(
    change: Callable[[RunFolder], None], expected: str, run: RunFolder
) -> None:
    change(run)
    with pytest.raises(UserError, match=expected) as error:
        start_of(run, None, interval=2)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="has no complete checkpoint"):
        load_run(run.path)
    with pytest.raises(UserError, match="has no complete checkpoint"):
        consolidate(run.path)


def test_a_run_without_provenance_is_not_mixed_with_another(run: RunFolder) -> None:
    (run.path / "provenance.json").unlink()
    with pytest.raises(UserError, match=r"holds a run without provenance\.json"):
        reject_another_run(run, {"config_fingerprint": "0"})
    (run.path / "provenance.json").write_text("{}")
    with pytest.raises(UserError, match="of format 1"):
        reject_another_run(run, {"config_fingerprint": "0"})


@pytest.mark.parametrize("name", ["run/checkpoints/step00000002.ckpt", "other.ckpt"])
def test_an_older_or_another_checkpoint_is_not_started_from_over_a_run(name: str, run: RunFolder) -> None:
    given = run.path.parent / name
    shutil.copy(run.checkpoints / "step00000002.ckpt", run.path.parent / "other.ckpt")
    with pytest.raises(UserError, match="would cut back or mix with another: choose another"):
        start_of(run, str(given), interval=2)
    assert start_of(run, str(run.last_link), interval=2).checkpoint == run.checkpoints / "step00000004.ckpt"


def test_what_is_rejected_is_left_as_it_is(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run.path)
    older = str(run.checkpoints / "step00000002.ckpt")
    assert main(["fit", *SMALL, *EVERY_2, "--run.dir", str(run.path), "--ckpt_path", older]) == 2
    error = capsys.readouterr().err
    assert "would cut back" in error
    assert error.count("\n") == 1
    assert content(run.path) == before


def test_a_run_interrupted_before_its_first_checkpoint_starts_again_and_says_so(
    whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError):
        main(["fit", *SMALL, *KEPT, "--run.dir", str(folder), *callbacks(folder, ("Break", {"step": 5}), every=9)])
    assert RunFolder(folder).metrics()
    again = fit(folder, *KEPT, "--checkpoints.interval", "9")
    assert f"starting {folder} again: it stopped at step 4 without a checkpoint\n" in capsys.readouterr().out
    assert without_clocks(again.metrics()) == without_clocks(whole.metrics())


def test_a_run_started_from_a_checkpoint_resumes_by_the_same_command(
    whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    checkpoint = tmp_path / "given.ckpt"
    shutil.copy(whole.checkpoints / "step00000004.ckpt", checkpoint)
    longer = [*SMALL, *EVERY_2, "--trainer.max_steps", "12", "--run.dir", str(folder), "--ckpt_path", str(checkpoint)]
    with pytest.raises(RuntimeError):
        main(["fit", *longer, *callbacks(folder, ("Break", {"step": 9}))])
    assert f"starting {folder} from {checkpoint}\n" in capsys.readouterr().out
    checkpoint.unlink()  # not read again
    assert main(["fit", *longer]) == 0
    assert f"resuming {folder} from step00000008.ckpt\n" in capsys.readouterr().out
    assert RunFolder(folder).series("train/loss")[0].tolist() == [6, 8, 10, 12]


def test_every_reader_takes_the_same_checkpoint_and_validations_with_other_data_are_kept_apart(
    whole: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(shutil.copytree(whole.path, tmp_path / "copy", symlinks=True))
    no_link(copy)
    loaded = load_run(copy.path).model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in weights(whole).items())
    command = ["validate", "-c", str(copy.config_file), "--run.dir", str(copy.path)]
    for more in ([], ["--data.validation_rows", "7"]):
        assert main([*command, *more]) == 0
    files = list((copy.path / "validation").iterdir())
    assert all(file.name.startswith("step00000006-") for file in files)
    losses = {from_json(file.read_text())["validation/loss"] for file in files}
    assert len(losses) == len(files) == 2
    assert whole.summary()["val_loss"] in losses


# -- the end of a sitting, and of a run ------------------------------------------------------------------------


def code_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)


def test_time_that_is_up_ends_a_sitting_and_not_the_run(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["fit", *SMALL, *EVERY_2, "--run.dir", str(folder)]
    waiting = callbacks(folder, ("Late", {"step": 5}), every=2)
    assert code_of([*arguments, *waiting, "--trainer.max_time", "00:00:10:00"]) == 75
    out = capsys.readouterr().out
    assert "stopped by trainer.max_time at step 5, checkpoint saved: the same command resumes\n" in out
    assert not RunFolder(folder).finished
    assert code_of([*arguments, "--trainer.max_time", "00:01:00:00"]) == 0
    assert f"resuming {folder} from step00000005.ckpt\n" in capsys.readouterr().out
    assert_same(RunFolder(folder), whole)


@pytest.mark.parametrize("value", ["soon", "00:00:00:00"])
def test_a_limit_of_time_that_is_none_is_rejected(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(["fit", *SMALL, "--run.dir", str(tmp_path / "run"), "--trainer.max_time", value]) == 2
    error = capsys.readouterr().err
    assert f"trainer.max_time is '{value}'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def stopping_file(folder: Path, **options: Any) -> list[str]:
    file = folder.with_name("stopping.yaml")
    rule = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "validation/loss"}}
    rule["init_args"] |= options  # type: ignore[operator]
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [rule]}}))
    return ["-c", str(file)]


def test_a_run_that_its_own_rule_stops_is_finished_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["fit", *SMALL, "--trainer.max_steps", "60", "--run.dir", str(folder)]
    rule = stopping_file(folder, patience=1, min_delta=100.0)
    assert main([*arguments, *rule]) == 0
    summary = RunFolder(folder).summary()
    assert (summary["steps"], summary["stopped_early"], summary["diverged"]) == (6, True, False)
    assert main([*arguments, *rule]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*arguments, *stopping_file(folder, patience=2, min_delta=100.0)]) == 2
    assert "holds a run of another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("limit_train_batches", 1), ("limit_train_batches", 0.5), ("overfit_batches", 4)]
)
def test_epochs_are_rejected(option: str, value: float) -> None:
    expected = f"trainer.{option} is {value}, but training is one endless stream of steps: leave it out"
    with pytest.raises(UserError, match=expected):
        around(RunFolder("run"), {option: value}, None)
    around(RunFolder("run"), {"limit_train_batches": 1.0, "overfit_batches": 0.0}, None)


# -- what a result says -----------------------------------------------------------------------------------------


def test_a_run_without_validation_has_not_diverged_and_one_without_a_seed_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = ("--trainer.limit_val_batches", "0", "--seed_everything", "false")
    run = fit(tmp_path / "run", *without)
    assert main(["validate", *SMALL, *without, "--run.dir", str(run.path)]) == 2
    assert "no row was validated: give a --trainer.limit_val_batches above 0" in capsys.readouterr().err
    summary = run.summary()
    assert summary["val_loss"] is None
    assert summary["diverged"] is False
    assert summary["train_loss"] > 0
    assert summary["seed"] is None


@pytest.mark.parametrize("value", ["", "FILE", "FILE/below"])
def test_a_run_folder_that_cannot_be_one_is_rejected(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("mine")
    assert code_of(["fit", *SMALL, "--run.dir", value]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"run.dir is '{value}', but must name a folder" in error or f"{value} cannot be written" in error
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
    assert Path("FILE").read_text() == "mine"


# -- complete checkpoints ---------------------------------------------------------------------------------------


def test_a_folder_of_shards_is_complete_with_all_that_its_index_names(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "step00000002.ckpt"
    dcp.save({"weight": torch.ones(3)}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    assert not is_complete(folder)  # meta.pt is written last
    (folder / REST).touch()
    assert is_complete(folder)
    for name in ("__0_0.distcp", INDEX, REST):
        (folder / name).rename(tmp_path / "elsewhere")
        assert not is_complete(folder), name
        (tmp_path / "elsewhere").rename(folder / name)
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-9])
    assert not is_complete(folder)
