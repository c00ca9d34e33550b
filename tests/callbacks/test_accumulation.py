"""One run, however the rows of its steps are split: all of them at once, accumulated, or over two processes as well."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sinks.callbacks import SinkStatistics
from sinks.cli import main
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.board import tag_of
from sinks.runs.train import around
from tests.cli.small import CLOCKS, THROUGHPUT, fit, small, weights
from tests.faults.processes import start_ranks

ROWS = 4  # of an optimizer step
TOLERANCE = 1e-5
ON_CLOCKS = {*CLOCKS, *THROUGHPUT}


def split(accumulated: int, processes: int = 1) -> list[str]:
    """Arguments that make a step of as many rows."""
    return [
        *("--trainer.precision=32-true", "--trainer.gradient_clip_val=0.8", "--trainer.max_steps=8"),
        *("--data.validation_rows=11", "--model.norm_rank=4", "--checkpoints.interval=2"),
        *(f"--data.batch_size={ROWS // accumulated // processes}", f"--trainer.accumulate_grad_batches={accumulated}"),
    ]


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("once"), *split(1), variant="gated-both")


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("accumulated"), *split(4), variant="gated-both")


@pytest.fixture(scope="module")
def over_two_processes(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("two-processes")
    arguments = [*small("gated-both"), *split(2, processes=2), "--trainer.devices=2", "--trainer.strategy=ddp"]
    for rank in start_ranks(["fit", *arguments, "--run.dir", str(folder / "run")], folder / "log"):
        assert rank.wait() == 0, rank.output
    return RunFolder(folder / "run")


def assert_close(found: Any, expected: Any, name: str) -> None:
    # A correlation near zero is as exact as one near one.
    scale = 1.0 if "correlation" in name else np.nanmax(np.abs(np.asarray(expected, dtype=float)), initial=1e-30)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name)


def assert_same_lines(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() ^ theirs.keys() <= ON_CLOCKS
        for key in theirs.keys() - ON_CLOCKS:
            assert_close(ours[key], theirs[key], f"{key} of step {theirs['step']}")


def assert_same(found: RunFolder, expected: RunFolder) -> None:
    """Every number of both folders."""
    assert_same_lines(found.metrics(), expected.metrics())
    for stage in ("train", "validation"):
        ours, theirs = found.statistics(stage), expected.statistics(stage)
        assert (ours.steps.tolist(), ours.sites) == (theirs.steps.tolist(), theirs.sites)
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in theirs.arrays.items():
            assert_close(ours.arrays[name], array, f"{stage} {name}")
    ours_at_end, theirs_at_end = found.summary(), expected.summary()
    assert ours_at_end.keys() ^ theirs_at_end.keys() <= ON_CLOCKS
    for key in theirs_at_end.keys() - ON_CLOCKS:
        if isinstance(theirs_at_end[key], float):
            assert_close(ours_at_end[key], theirs_at_end[key], key)
        else:
            assert ours_at_end[key] == theirs_at_end[key], key
    for name, weight in weights(expected).items():
        assert_close(weights(found)[name], weight, name)


def test_what_is_compared_is_not_nothing(at_once: RunFolder) -> None:
    assert at_once.series("validation/loss")[0].tolist() == [3, 6, 8]
    assert at_once.series("train/loss")[0].tolist() == [2, 4, 6, 8]
    assert at_once.statistics("train").steps.tolist() == [1, 2, 4, 6, 8]
    norms = at_once.series("train/gradient_norm")[1]
    assert norms.min() < 0.8 < norms.max()  # so that crossings of the clip are counted


def test_every_number_is_that_of_the_step_at_once(accumulated: RunFolder, at_once: RunFolder) -> None:
    assert_same(accumulated, at_once)
    options = accumulated.config()["trainer"]
    assert (options["val_check_interval"], options["accumulate_grad_batches"]) == (3, 4)


def test_every_number_is_that_of_two_processes(over_two_processes: RunFolder, at_once: RunFolder) -> None:
    assert_same(over_two_processes, at_once)


@pytest.mark.parametrize("other", ["accumulated", "over_two_processes"])
def test_tensorboard_has_the_same_numbers(other: str, at_once: RunFolder, request: pytest.FixtureRequest) -> None:
    runs = request.getfixturevalue(other), at_once
    ours, theirs = (EventAccumulator(str(run.path)).Reload() for run in runs)
    assert ours.Tags()["scalars"] == theirs.Tags()["scalars"]
    for tag in set(theirs.Tags()["scalars"]) - {tag_of(key) for key in ON_CLOCKS}:
        found, expected = ([(event.step, event.value) for event in events.Scalars(tag)] for events in (ours, theirs))
        assert_close(found, expected, tag)


def test_a_recomputed_forward_pass_is_not_counted_again(
    at_once: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: set[int] = set()
    log = SinkStatistics._log

    def count(self: SinkStatistics, trainer: lightning.Trainer, stage: str) -> None:
        log(self, trainer, stage)
        if stage == "train":
            counted.update(int(histogram.sum()) for histogram in self.reader.histograms.values())

    monkeypatch.setattr(SinkStatistics, "_log", count)
    checkpointed = fit(tmp_path, *split(2), "--model.execution.activation_checkpointing=true", variant="gated-both")
    assert counted == {ROWS * 12 * 16}  # tokens x channels
    assert_same(checkpointed, at_once)


# -- what happens within a step --------------------------------------------------------------------------------


def runs_compiled() -> bool:
    """Whether torch.compile compiles."""
    graphs: list[torch.fx.GraphModule] = []
    torch.compile(lambda x: x + 1, backend=lambda graph, inputs: graphs.append(graph) or graph)(torch.ones(1))
    return bool(graphs)


class Within(Callback):
    """Acts after the first micro-batch of a step.

    Args:
        step: counted from 1.
        act: "stop" asks for the end of training, as Lightning's timer does; "save" saves a checkpoint; "break" raises
            an error that says whether code runs compiled.
        file: of the checkpoint.
    """

    def __init__(self, step: int, act: str, file: str = "") -> None:
        self.step, self.act, self.file = step, act, file

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        batch_idx: int = rest[-1]
        if batch_idx != (self.step - 1) * trainer.accumulate_grad_batches:
            return
        if self.act == "break":
            raise RuntimeError(f"the plug was pulled, compiled: {runs_compiled()}")
        if self.act == "save":
            trainer.save_checkpoint(self.file)
        trainer.should_stop |= self.act == "stop"


def within(folder: Path, **options: Any) -> list[str]:
    """Arguments that add the callback."""
    callback = {"class_path": "tests.callbacks.test_accumulation.Within", "init_args": options}
    file = folder / "within.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    return ["-c", str(file)]


def test_a_run_resumes_with_another_number_of_micro_batches(at_once: RunFolder, tmp_path: Path) -> None:
    arguments = ["fit", *small("gated-both"), "--run.dir", str(tmp_path / "run")]
    with pytest.raises(RuntimeError, match="compiled: False"):  # step 6 is sampled
        main([*arguments, *split(2), *within(tmp_path, step=6, act="break")])
    assert runs_compiled()
    assert main([*arguments, *split(4)]) == 0
    assert_same(RunFolder(tmp_path / "run"), at_once)


def test_a_checkpoint_taken_within_a_step_resumes_at_its_start(at_once: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "within.ckpt"
    more = within(tmp_path, step=5, act="save", file=str(file))
    fit(tmp_path / "one", *split(4), *more, variant="gated-both")
    resumed = fit(tmp_path / "two", *split(4), "--ckpt_path", str(file), variant="gated-both")
    assert_same_lines(resumed.metrics(), [line for line in at_once.metrics() if line["step"] > 4])


def test_a_stop_waits_for_the_end_of_the_step(tmp_path: Path) -> None:
    more = ["--run.dir", str(tmp_path / "run"), *within(tmp_path, step=5, act="stop")]
    with pytest.raises(SystemExit, match="75"):  # a sitting that ended before the run
        main(["fit", *small("gated-both"), *split(4), *more])
    run = RunFolder(tmp_path / "run")
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert (checkpoint["global_step"], progress["completed"]) == (5, 5 * 4)


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_check_interval": 0.5}, "val_check_interval is 0.5, but counts optimizer steps: give a whole number"),
        ({"val_check_interval": 0}, "val_check_interval is 0, but"),
        ({"val_check_interval": "00:00:01:00"}, "val_check_interval is 00:00:01:00, but"),
        ({"val_check_interval": timedelta(minutes=1)}, "val_check_interval is 0:01:00, but"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0, but must be at least 1"),
        ({"limit_train_batches": 1}, "limit_train_batches is 1, but training is one endless stream"),
        ({"limit_train_batches": 0.5}, "limit_train_batches is 0.5, but"),
        ({"overfit_batches": 2}, "overfit_batches is 2, but"),
        ({"fast_dev_run": True}, "fast_dev_run is True, but"),
        ({"min_epochs": 1}, "min_epochs is 1, but"),
        ({"check_val_every_n_epoch": 2}, "check_val_every_n_epoch is 2, but"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler, but all steps must"),
    ],
)
def test_what_would_change_a_step_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refused:
        around(RunFolder(tmp_path / "run"), options, None)
    assert "\n" not in str(refused.value)


def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["fit", *small(), "--run.dir", str(run), "--trainer.limit_train_batches", "3"]) == 2
    assert "trainer.limit_train_batches is 3, but" in capsys.readouterr().err.splitlines()[-1]
    assert not run.exists()


@pytest.mark.parametrize(("given", "micro_batches"), [(3, 12), (None, None)])
def test_the_interval_of_validation_is_one_of_steps(
    given: int | None, micro_batches: int | None, tmp_path: Path
) -> None:
    options = {"val_check_interval": given, "accumulate_grad_batches": 4}
    assert around(RunFolder(tmp_path), options, None).get("val_check_interval") == micro_batches
