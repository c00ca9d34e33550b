"""A line per validation, in a terminal and in a log file; on a terminal the steps and the time left too."""

import math
from contextlib import ExitStack
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sinks.callbacks.recorder import RunRecorder
from sinks.callbacks.statistics import SinkStatistics
from sinks.progress import live

SHOWN = {"attention/first_token_mass_max_head": "first-token mass {:.2f}", "residual/sink_score": "R {:.1f}"}


class LineProgress(Callback):
    """Prints what is trained on what, a line after every validation, and in the end what to do next.

    On a terminal the steps are counted live, without a synchronization with the device.

    Args:
        enabled: whether to print.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._live = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled and trainer.is_global_zero:
            device = trainer.strategy.root_device.type
            many = f", {torch.get_num_threads()} threads" if device == "cpu" else f" x {trainer.world_size}"
            parts = [self._who(trainer), f"steps {trainer.global_step} to {trainer.max_steps}"]
            print(" | ".join([*parts, f"{device}{many}", trainer.precision]), flush=True)
            self._step = trainer.global_step
            counted = live("training", trainer.max_steps, "step", done=self._step)
            self._advance = self._live.enter_context(counted)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.enabled and trainer.is_global_zero and trainer.global_step > self._step:
            self._advance(trainer.global_step - self._step)
            self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._live.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._live.close()  # after an error too

    @staticmethod
    def _who(trainer: Trainer) -> str:
        callbacks: list[Any] = trainer.callbacks
        identity = next(c.identity for c in callbacks if isinstance(c, RunRecorder))
        return f"{identity.get('variant', '')} seed {identity.get('seed', '')}"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self.enabled and trainer.is_global_zero and trainer.state.fn == "fit"):
            return
        callbacks: list[Any] = trainer.callbacks
        statistics = next((c.latest for c in callbacks if isinstance(c, SinkStatistics)), {})
        recorder = next(c for c in callbacks if isinstance(c, RunRecorder))
        loss = float(trainer.callback_metrics.get("validation/loss", math.nan))
        parts = [
            self._who(trainer),
            f"step {trainer.global_step}/{trainer.max_steps}",
            f"loss {loss:.3f}",
        ]
        for key, text in SHOWN.items():
            if key in statistics:
                parts.append(text.format(statistics[key]))
        print(" | ".join([*parts, f"{recorder.wall_s:.0f} s"]), flush=True)
