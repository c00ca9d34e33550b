"""A run with a non-finite gradient: weights stay, the first non-finite tensor is named, and the run is a result."""

import json
from pathlib import Path

import pytest
import torch

from sinks.callbacks.divergence import NonFiniteDetector, check_parameters
from sinks.cli import main
from sinks.cli.training import command_line
from sinks.data.backcopy import Backcopy
from sinks.models.attention_gates import NoGate
from sinks.models.taps import taps_of
from sinks.record import RunFolder
from tests.cli.small import EVERY_VARIANT, SMALL, small
from tests.faults.processes import callbacks, start_ranks

BATCH = 4


def poisoned(poison: str, position: int, *more: str) -> list[str]:
    """Arguments of a run that diverges on the row at a stream position, of global batches of four rows."""
    row = ".".join(str(int(token)) for token in Backcopy(context_length=12).train_set()[position])
    model = ["--model", "tests.faults.parts.Poisoned", "--model.poison", poison, "--model.row", row]
    return ["fit", *SMALL, *model, "--trainer.max_steps", "8", *more]


def assert_ended_as_a_result(run: RunFolder, step: int) -> dict[str, object]:
    """The content of divergence.json, after checks common to all diverged runs."""
    summary = run.summary()
    assert summary["diverged"] is True
    assert summary["steps"] == step
    found: dict[str, object] = json.loads((run.path / "divergence.json").read_text())
    return found


CASES = {
    "forward": ("activation", "head.norm.output"),
    "backward": ("gradient", "blocks.1.residual.out"),  # the same tensor as head.norm.input
    "loss": ("loss", "loss"),
    "once": ("not reproduced", ""),
}


@pytest.mark.parametrize("poison", CASES)
def test_the_first_nonfinite_tensor_is_named(poison: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    keep = callbacks(folder, ("Keep", {"folder": str(tmp_path), "step": 4}), every=100)
    assert main([*poisoned(poison, 4 * BATCH + 2), "--run.dir", str(folder), *keep]) == 0
    found = assert_ended_as_a_result(RunFolder(folder), 6)  # logged every two steps
    kind, site = CASES[poison]
    assert (found["step"], found["micro_batch"], found["rank"]) == (5, 1 if poison == "once" else 0, 0)
    assert (found["kind"], found["site"]) == (kind, site)
    assert (found["max_abs"] is not None) == (poison == "forward")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("diverged: the gradient of step 5 is not finite, ")
    assert site in line
    assert not (folder / "checkpoints").exists()
    before, after = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("step", "end"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(weight.isfinite().all() for weight in after.values())


def test_a_diverged_run_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*poisoned("forward", 4 * BATCH), "--run.dir", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out.splitlines()[-1]


def test_no_checkpoint_is_saved_of_a_diverged_state(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = ("--run.dir", str(folder), "--checkpoints.interval", "1", "--checkpoints.keep", "9")
    assert main([*poisoned("backward", 4 * BATCH, *more)]) == 0
    assert_ended_as_a_result(RunFolder(folder), 5)  # found when the checkpoint was due, before the loss was logged
    steps = [
        torch.load(file, weights_only=True)["global_step"] for file in sorted((folder / "checkpoints").glob("step*"))
    ]
    assert steps == [1, 2, 3, 4]
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_resumed_run_finds_the_rows_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = ("--run.dir", str(folder), "--trainer.accumulate_grad_batches", "2", "--checkpoints.interval", "2")
    for _ in range(2):
        assert (
            main([*poisoned("forward", 4 * 2 * BATCH + BATCH + 1, *more, "--trainer.val_check_interval", "100")]) == 0
        )
        found = assert_ended_as_a_result(RunFolder(folder), 6)
        assert (found["step"], found["micro_batch"], found["site"]) == (5, 1, "head.norm.output")
        (folder / "summary.json").unlink()
        (folder / "divergence.json").unlink()


def test_a_checkpointed_block_is_replayed_too(tmp_path: Path) -> None:
    more = ("--run.dir", str(tmp_path / "run"), "--model.execution.activation_checkpointing", "true")
    assert main([*poisoned("backward", 4 * BATCH, *more)]) == 0
    assert assert_ended_as_a_result(RunFolder(tmp_path / "run"), 6)["site"] == "blocks.1.residual.out"


@pytest.mark.slow
def test_a_compiled_block_is_replayed_too(tmp_path: Path) -> None:
    more = ("--run.dir", str(tmp_path / "run"), "--model.execution.compile", "true")
    assert main([*poisoned("backward", 4 * BATCH, *more)]) == 0
    # A tap within the block: compiled code would skip it, and the head's norm would be named.
    assert assert_ended_as_a_result(RunFolder(tmp_path / "run"), 6)["site"] == "blocks.1.residual.out"


def test_clipping_by_value_is_guarded_too(tmp_path: Path) -> None:
    more = ("--run.dir", str(tmp_path / "run"), "--trainer.gradient_clip_algorithm", "value")
    assert main([*poisoned("backward", 4 * BATCH, *more)]) == 0
    assert assert_ended_as_a_result(RunFolder(tmp_path / "run"), 6)["step"] == 5


SHARDED = ["--trainer.strategy=sinks.parallel.strategy.Sharded", "--trainer.strategy.save_distributed_checkpoint=false"]
# Strategy: its arguments, rows per process, and the rank that reads the second row of a step first.
STRATEGIES = {
    "ddp": (["--trainer.strategy=ddp"], 2, 1),
    "fsdp2": (SHARDED, 2, 1),
    "tensor-parallel": ([*SHARDED, "--trainer.strategy.tensor_parallel_size=2"], 4, 0),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_ranks_stop_and_the_first_nonfinite_one_is_named(strategy: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more, rows, bad_rank = STRATEGIES[strategy]
    ranks = start_ranks(
        [
            *poisoned("forward", 4 * BATCH + 1),
            *("--model.architecture.n_heads=2", "--trainer.devices=2", f"--data.batch_size={rows}"),
            *("--run.dir", str(folder), *more),
            *callbacks(folder, ("Keep", {"folder": str(tmp_path), "step": 4}), every=100),
        ],
        tmp_path / "log",
    )
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    found = assert_ended_as_a_result(RunFolder(folder), 6)
    assert (found["step"], found["rank"], found["site"]) == (5, bad_rank, "head.norm.output")
    assert "diverged: the gradient of step 5 is not finite" in ranks[0].output
    assert "diverged" not in ranks[1].output
    before, after = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("step", "end"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize(
    ("first", "second", "kind", "site", "max_abs"),
    [
        (torch.inf, torch.nan, "parameter gradient", "1.weight", 1.0),  # backward comes to the last one first
        (torch.inf, 2.0, "parameter gradient", "0.weight", 1.0),
        (3.0, 3e38, "gradient norm", "1.weight", None),  # each is finite, but not the root of their sum of squares
        (3.0, 2.0, None, None, None),
    ],
)
def test_parameters_are_checked_when_every_activation_is_finite(
    first: float, second: float, kind: str | None, site: str | None, max_abs: float | None
) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 1, bias=False) for _ in range(2)))
    for layer, value in zip(model, (first, second), strict=True):
        layer.weight.grad = torch.tensor([[1.0, value]])
    detector = NonFiniteDetector(0)
    check_parameters(detector, model)  # type: ignore[arg-type]
    found = detector.first
    assert (found and found.kind, found and found.site, found and found.max_abs) == (kind, site, max_abs)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_a_finite_model_has_no_report(variant: str, tmp_path: Path) -> None:
    arguments = [*small(variant), "--run.dir", str(tmp_path / "run")]
    built = command_line(arguments, run=False)
    built.model.configure_model()
    detector = NonFiniteDetector(0)
    for tap in taps_of(built.model):
        tap.listener = detector.check_tap
    built.model.loss(torch.stack([built.datamodule.train_set()[i] for i in range(BATCH)]))
    ungated = sum(isinstance(module, NoGate) for module in built.model.modules())
    assert detector.checked == len(taps_of(built.model)) - ungated
    assert detector.first is None


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "16"])
def test_half_precision_is_rejected(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, "--run.dir", str(tmp_path / "run"), "--trainer.precision", precision]) == 2
    error = capsys.readouterr().err
    assert "65504" in error
    assert "bf16-mixed" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
