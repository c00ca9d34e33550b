"""Prints the phase of a run to its log, so that a test can kill it there."""

import shutil
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class Phases(Callback):
    """Prints `<phase> <optimizer step>`, and pauses there briefly.

    Args:
        seconds: per step, and per batch of a validation; twenty times as long between the last and the summary.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: lightning.Trainer, *rest: Any) -> None:
        print(f"step {trainer.global_step + 1}", flush=True)

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *rest: Any) -> None:
        time.sleep(self.seconds)

    def on_validation_start(self, trainer: lightning.Trainer, *rest: Any) -> None:
        print(f"validation {trainer.global_step}", flush=True)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        time.sleep(self.seconds)

    def on_fit_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        time.sleep(20 * self.seconds)

    def on_save_checkpoint(self, trainer: lightning.Trainer, *rest: Any) -> None:
        print(f"checkpoint {trainer.global_step}", flush=True)


class Fill(Callback):
    """Fills a file system after an optimizer step.

    Args:
        file: what fills it.
        step: after which step.
        leave: bytes that stay free.
    """

    def __init__(self, file: str, step: int, leave: int) -> None:
        self.file, self.step, self.leave = Path(file), step, leave

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step and trainer.is_global_zero:
            free = shutil.disk_usage(self.file.parent).free
            self.file.write_bytes(bytes(free - self.leave))
