"""A callback that writes down which rows each process trained on, and can kill the run after a step."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sinks.parallel.ranks import data_ranks


class SeenRows(Callback):
    """One line per row: step (from 1), place in the step's rows, hash.

    Args:
        folder: where each process appends to a file of its own.
        killed_after: optimizer step after which the process kills itself; None for never.
    """

    def __init__(self, folder: str, killed_after: int | None = None) -> None:
        self.folder = Path(folder)
        self.killed_after = killed_after

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rank, readers = data_ranks(trainer)
        with (self.folder / f"{rank}.txt").open("a") as file:
            for i, row in enumerate(batch):
                file.write(f"{trainer.global_step} {rank + i * readers} {digest(row)}\n")
        if trainer.global_step == self.killed_after:
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)


def digest(row: Tensor) -> str:
    """Of a row of token ids."""
    return hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16]


def seen(folder: Path) -> dict[tuple[int, int], str]:
    """Hash of every row by (step, place); a step trained twice, because a run was resumed before it, counts once.

    Raises:
        AssertionError: if it was trained on other rows the second time.
    """
    rows: dict[tuple[int, int], str] = {}
    for file in folder.glob("*.txt"):
        for line in file.read_text().splitlines():
            step, place, row = line.split()
            assert rows.setdefault((int(step), int(place)), row) == row, f"step {step} saw other rows"
    return rows
