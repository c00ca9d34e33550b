"""Averaged weights: their definition, what reads them, and the same run whatever the strategy or an interruption."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from sinks.errors import UserError
from sinks.families import CausalLM, Optimization
from sinks.families.averaging import Averaging, ExponentialAverage, MeanOfLast
from sinks.families.optimizers import MuonAdamW
from sinks.parallel.checkpoint_io import read_checkpoint
from sinks.record import RunFolder
from sinks.report.ablation import load_ablation
from sinks.report.reproduction import lines
from sinks.runs import load_run
from tests.cli.small import fit, small, without_clocks
from tests.families.variants import SMALL
from tests.faults.processes import callbacks, start_ranks

STEPS = 6
Weights = dict[str, torch.Tensor]


def expected(name: str, trajectory: list[Weights], step: int) -> Weights:
    """In float64, from the weights after every step up to `step`."""
    stacked = {key: torch.stack([w[key] for w in trajectory[:step]]).double() for key in trajectory[0]}
    if name == "exponential":
        factors = torch.tensor([0.7 ** (step - i) for i in range(1, step + 1)], dtype=torch.float64)
    else:  # the last half: steps 4 to 6
        factors = torch.tensor([float(i >= 4 or i == step) for i in range(1, step + 1)], dtype=torch.float64)
        factors *= torch.tensor([float(step < 4 or i >= 4) for i in range(1, step + 1)], dtype=torch.float64)
    return {key: torch.tensordot(factors / factors.sum(), value, 1) for key, value in stacked.items()}


class Watch(lightning.Callback):
    """The weights after every step, while validation runs, and when it is over."""

    def __init__(self) -> None:
        self.trained: list[Weights] = []
        self.validated: list[Weights] = []
        self.after: list[Weights] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.trained.append(_copied(pl_module))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.validated.append(_copied(pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.after.append(_copied(pl_module))


def _copied(model: CausalLM) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(averaging: Any, *more: lightning.Callback, dtype: Any = "32-true", **options: Any) -> Watch:
    torch.manual_seed(0)
    watch = Watch()
    optimization = Optimization(lr=0.1, warmup_steps=0)
    model = CausalLM(11, 12, architecture=SMALL, optimization=optimization, averaging=averaging, **options)
    rows = torch.randint(0, 11, (4 * STEPS, 13), generator=torch.Generator().manual_seed(1))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=STEPS, logger=False, enable_checkpointing=False, precision=dtype,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=1,
        gradient_clip_val=1.0, callbacks=[watch, *more],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    trainer.fit(model, loader, torch.utils.data.DataLoader(rows[:4], batch_size=4))  # type: ignore[arg-type]
    return watch


AVERAGES: dict[str, Any] = {
    "exponential": lambda: ExponentialAverage(0.7),
    "mean": lambda: MeanOfLast(0.5),
}


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": MuonAdamW}], ids=["adamw", "muon"])
@pytest.mark.parametrize("name", AVERAGES)
def test_validation_reads_the_average_and_training_does_not(name: str, optimizer: dict[str, Any]) -> None:
    found, plain = train(AVERAGES[name], **optimizer), train(Averaging, **optimizer)
    for step in range(1, STEPS + 1):
        for key, value in expected(name, plain.trained, step).items():
            torch.testing.assert_close(found.validated[step - 1][key].double(), value, rtol=1e-5, atol=1e-7)
        last = plain.trained[step - 1] if step < STEPS else found.validated[-1]
        assert all(torch.equal(found.trained[step - 1][key], value) for key, value in last.items()), step
        assert all(torch.equal(found.after[step - 1][key], value) for key, value in last.items()), step
    assert not torch.equal(found.validated[4]["decoder.head.weight"], plain.validated[4]["decoder.head.weight"])


STRATEGIES = {
    "ddp": ["--trainer.strategy=ddp"],
    "fsdp2": [
        "--trainer.strategy=sinks.parallel.strategy.Sharded",
        "--trainer.strategy.save_distributed_checkpoint=true",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_run_on_two_processes_is_that_of_one(strategy: str, tmp_path: Path) -> None:
    averaged = [
        "--model.averaging={class_path: sinks.families.averaging.ExponentialAverage, init_args: {decay: 0.7}}",
        "--trainer.precision=32-true",
        "--trainer.gradient_clip_val=0.3",
    ]
    one, many = fit(tmp_path / "one", *averaged), tmp_path / "many"
    arguments = ["fit", *small(), *averaged, *STRATEGIES[strategy], "--trainer.devices=2"]
    arguments += ["--data.batch_size=2", "--run.dir", str(many)]
    killed = callbacks(many, ("Kill", {"step": 5, "rank": 0}))
    first = start_ranks([*arguments, *killed], tmp_path / "first")
    assert [rank.wait() != 0 for rank in first] == [True, True]
    second = start_ranks([*arguments, *callbacks(many)], tmp_path / "second")
    assert [rank.wait() for rank in second] == [0, 0], [rank.output for rank in second]
    found = RunFolder(many)
    assert found.summary()["averaging"] == "exponential average, decay 0.7"
    for key in ("train/loss", "validation/loss"):
        np.testing.assert_allclose(found.series(key)[1], one.series(key)[1], rtol=1e-5, err_msg=key)
    weights = read_checkpoint(one.last_checkpoint or Path())["state_dict"]
    for name, weight in read_checkpoint(found.last_checkpoint or Path())["state_dict"].items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)


def test_an_interrupted_run_resumes_bit_for_bit_and_ends_in_the_average(tmp_path: Path) -> None:
    from sinks.cli import main

    mean = ["--model.averaging=MeanOfLast", "--model.averaging.fraction=0.8", "--trainer.precision=32-true"]
    whole = fit(tmp_path / "baseline" / "seed0", *mean)
    arguments = ["fit", *small(), *mean, "--run.dir", str(tmp_path / "interrupted")]
    with pytest.raises(RuntimeError, match="plug"):
        main([*arguments, *callbacks(tmp_path / "interrupted", ("Break", {"step": 5}))])
    assert main(arguments) == 0
    again = RunFolder(tmp_path / "interrupted")
    assert without_clocks(again.metrics()) == without_clocks(whole.metrics())
    # What a reader loads is what was validated.
    loaded = load_run(whole.path)
    with torch.no_grad():
        losses = [loaded.model.loss(batch) * len(batch) for batch in loaded.data.val_dataloader()]
    rows = sum(len(batch) for batch in loaded.data.val_dataloader())
    assert float(sum(losses)) / rows == pytest.approx(whole.summary()["val_loss"], rel=1e-5)
    assert "weights: mean over the last 0.8 of the steps" in lines(load_ablation(tmp_path / "baseline"))


def test_what_cannot_be_averaged_is_rejected_in_a_line() -> None:
    with pytest.raises(UserError, match="EarlyStopping callback may end the run before: remove one of them"):
        train(MeanOfLast, EarlyStopping("validation/loss"))
    with pytest.raises(UserError, match=r"parameters are torch.bfloat16, too coarse .*: give --trainer.precision"):
        train(ExponentialAverage, dtype="bf16-true")
    with pytest.raises(UserError, match="averaging decay is 1"):
        ExponentialAverage(1.0)
    with pytest.raises(UserError, match="averaging fraction is 0"):
        MeanOfLast(0.0)
