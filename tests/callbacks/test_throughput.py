"""Throughput by a clock that the test advances, so that every fraction is known exactly."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import Dataset

import sinks.callbacks.throughput
import sinks.data.loader
from sinks.callbacks import Throughput
from sinks.callbacks.throughput import matmul_dtype
from sinks.data.module import TokenData
from sinks.data.order import identity_order
from sinks.families import Baseline
from sinks.record import RunFolder
from sinks.record.logger import RunFolderLogger
from tests.cli.small import fit
from tests.families.variants import SMALL

FETCH, STEP, WARM_UP, VALIDATION, CHECKPOINT = 1.0, 3.0, 500.0, 100.0, 1000.0
BATCH, TOKENS = 4, 12


class Clock:
    """The value of `time.perf_counter`, advanced only by the simulated work."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (sinks.callbacks.throughput, sinks.data.loader):
        monkeypatch.setattr(module, "time", clock)
    return clock


class SlowRows(Dataset[Tensor]):
    """Rows of which a batch takes FETCH seconds."""

    def __init__(self, clock: Clock, size: int) -> None:
        self.clock, self.size = clock, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        self.clock.now += FETCH / BATCH
        return torch.arange(TOKENS + 1) % 11


class SlowData(TokenData):
    def __init__(self, clock: Clock) -> None:
        super().__init__(vocab_size=11, context_length=TOKENS, batch_size=BATCH, seed=0, num_workers=0)
        self.clock = clock

    def train_set(self) -> Dataset[Tensor]:
        return SlowRows(self.clock, 10**6)

    def train_order(self) -> Callable[[int], int]:
        return identity_order

    def validation_set(self) -> Dataset[Tensor]:
        return SlowRows(self.clock, 2 * BATCH)

    def fingerprint(self) -> str:
        return ""


class SlowModel(Baseline):
    """Takes its time for the first two steps, for every step, for validation and for a checkpoint."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(11, TOKENS, architecture=SMALL)
        self.clock, self.warm_from = clock, 0

    def on_train_start(self) -> None:
        self.warm_from = self.trainer.global_step + 2

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        self.clock.now += STEP if self.trainer.global_step >= self.warm_from else WARM_UP
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.now += VALIDATION
        super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.now += CHECKPOINT


def train(clock: Clock, folder: Path, max_steps: int, ckpt_path: str | None = None, **options: Any) -> Throughput:
    """Train with a log every 2 steps, a checkpoint every 3 and a validation every 4."""
    throughput = Throughput()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        log_every_n_steps=2,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=RunFolderLogger(str(folder)),
        callbacks=[throughput, ModelCheckpoint(folder / "checkpoints", every_n_train_steps=3, save_last="link")],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(SlowModel(clock), datamodule=SlowData(clock), ckpt_path=ckpt_path)
    throughput.final = throughput.summary(trainer)  # type: ignore[attr-defined]
    return throughput


@pytest.mark.parametrize("accumulated", [1, 2])
def test_rates_are_of_training_time_alone(accumulated: int, clock: Clock, tmp_path: Path) -> None:
    throughput = train(clock, tmp_path, 8, accumulate_grad_batches=accumulated)
    expected = BATCH * TOKENS / (FETCH + STEP)
    run = RunFolder(tmp_path)
    steps, rates = run.series("train/tokens_per_second")
    assert steps.tolist() == [4, 6, 8]
    assert rates.tolist() == pytest.approx([expected] * 3, rel=1e-12)
    assert run.series("train/data_wait_share")[1].tolist() == pytest.approx([FETCH / (FETCH + STEP)] * 3, rel=1e-12)
    assert throughput.tokens == 6 * accumulated * BATCH * TOKENS
    assert throughput.final["tokens_per_second"] == pytest.approx(expected, rel=1e-12)  # type: ignore[attr-defined]
    assert clock.now > 2 * accumulated * WARM_UP + 2 * VALIDATION + 2 * CHECKPOINT


def test_a_resumed_run_adds_to_what_came_before(clock: Clock, tmp_path: Path) -> None:
    train(clock, tmp_path, 3)
    resumed = train(clock, tmp_path, 8, ckpt_path=str(tmp_path / "checkpoints/last.ckpt"))
    assert resumed.tokens == (1 + 3) * BATCH * TOKENS  # without the first two steps of either process
    assert resumed.trained_s == pytest.approx((1 + 3) * (FETCH + STEP), rel=1e-12)
    assert resumed.waited_s == pytest.approx((1 + 3) * FETCH, rel=1e-12)


def test_operations_are_tokens_times_those_of_the_model(clock: Clock, tmp_path: Path) -> None:
    train(clock, tmp_path, 6)
    lines = [line for line in RunFolder(tmp_path).metrics() if "train/tflops_per_second" in line]
    per_token = SlowModel(clock).flops_per_token().per_token
    assert len(lines) == 2
    for line in lines:
        assert line["train/tflops_per_second"] * 1e12 == pytest.approx(line["train/tokens_per_second"] * per_token)
        assert not {"train/mfu", "train/peak_memory_gb"} & line.keys()


def test_mfu_is_logged_where_the_peak_is_known(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sinks.callbacks.throughput, "dense_peak", lambda device, dtype: asked.append(dtype) or 10**6)
    throughput = train(clock, tmp_path, 4, precision="bf16-mixed")
    line = RunFolder(tmp_path).metrics()[-1]
    assert line["train/mfu"] == pytest.approx(line["train/tflops_per_second"] * 1e12 / 10**6)
    assert throughput.final["mfu"] == pytest.approx(line["train/mfu"])  # type: ignore[attr-defined]
    assert asked == [torch.bfloat16]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float64),
    ],
)
def test_the_dtype_of_the_products(precision: str, dtype: torch.dtype) -> None:
    assert matmul_dtype(precision) is dtype


def test_a_run_of_the_command_line_logs_it(tmp_path: Path) -> None:
    run = fit(tmp_path)
    steps, shares = run.series("train/data_wait_share")
    assert steps.tolist() == [4, 6]
    assert ((shares > 0) & (shares < 1)).all()
    summary = run.summary()
    assert summary["tokens_per_second"] >= summary["tokens"] / summary["wall_s"]
    assert 0 < summary["data_wait_share"] < 1
    assert "mfu" not in summary


def test_a_run_that_never_warmed_up_has_no_rate(tmp_path: Path) -> None:
    run = fit(tmp_path, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    assert math.isnan(run.summary()["tokens_per_second"])
    assert len(run.series("train/tokens_per_second")[0]) == 0
