"""When a run's state is saved, and which checkpoint it resumes from."""

import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sinks.callbacks.recorder import RunRecorder
from sinks.errors import require
from sinks.lightning_private import dump_checkpoint, validation_follows
from sinks.parallel.checkpoint_io import run_collectively
from sinks.record.atomic import remove_atomically, temporary_path
from sinks.record.checkpoints import checkpoint_name


class RunCheckpoints(ModelCheckpoint):
    """Saves the run's state; `last.ckpt` is a link to the newest complete checkpoint at all times.

    A checkpoint that falls on a validation is taken after it, and the last step always has one: a resumed run then
    neither repeats nor omits a logged line.

    Args:
        interval: optimizer steps between checkpoints.
        keep: how many of the newest are kept.
    """

    def __init__(self, interval: int = 500, keep: int = 1) -> None:
        for name, value in (("interval", interval), ("keep", keep)):
            nothing = "to save nothing give --trainer.enable_checkpointing false"
            require(f"checkpoints.{name}", value, at_least=1, remedy=nothing)
        super().__init__(every_n_train_steps=interval)
        self.interval, self.keep = interval, keep
        self._saved_step = 0
        self._written: list[int] = []  # steps whose checkpoints are the run's own, to remove

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = next(c.folder for c in trainer.callbacks if isinstance(c, RunRecorder))
        self.dirpath = str(self._folder.checkpoints)

    @property
    def state_key(self) -> str:
        return type(self).__name__  # whatever the interval, which may change when a run resumes

    def state_dict(self) -> dict[str, Any]:
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written = state_dict.get("written", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step  # nothing new to save yet, resumed or not
        if not self._resumed(trainer):
            self._written = []  # in another folder

    def _resumed(self, trainer: Trainer) -> bool:
        """Whether the run goes on from a checkpoint of its own."""
        path = trainer.ckpt_path
        return path is not None and Path(path).resolve().parent == self._folder.checkpoints.resolve()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run killed between its last checkpoint and the removal of the one before has nothing to train.
        if self._resumed(trainer) and trainer.is_global_zero:
            remove_checkpoints(self._folder.checkpoints, self._written[: -self.keep])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._due(trainer) and not validation_follows(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: training has no epochs."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def _due(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.interval == 0

    def save(self, trainer: Trainer) -> None:
        """Save the state after the last optimizer step, unless it is saved; called on every process.

        Raises:
            OSError: on every process, if the disk is full; the previous checkpoint stays.
        """
        step = trainer.global_step
        if step == self._saved_step:
            return
        path = self._folder.checkpoints / checkpoint_name(step)
        self._written = [*(each for each in self._written if each != step), step]
        checkpoint = dump_checkpoint(trainer)
        run_collectively(lambda: trainer.strategy.save_checkpoint(checkpoint, path))

        def take_over() -> None:
            if trainer.is_global_zero:
                point(self._folder.last_link, path)
                remove_checkpoints(path.parent, self._written[: -self.keep])

        run_collectively(take_over)
        self._written = self._written[-self.keep :]
        self._saved_step = step


def point(link: Path, target: Path) -> None:
    """Point a link atomically at a file or folder in the same folder."""
    temporary = temporary_path(link)
    temporary.unlink(missing_ok=True)
    os.symlink(target.name, temporary)
    if link.is_dir() and not link.is_symlink():
        remove_atomically(link)
    temporary.replace(link)


def remove_checkpoints(folder: Path, steps: list[int]) -> None:
    """Remove the checkpoints after some optimizer steps; any other file, newer or of the user's own, stays."""
    for step in steps:
        remove_atomically(folder / checkpoint_name(step))
