"""Writes a run's folder: configuration, provenance, losses, and at the end the summary."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sinks.callbacks.course import StepLoss, due
from sinks.callbacks.stability import Stability
from sinks.callbacks.statistics import SinkStatistics
from sinks.callbacks.throughput import Throughput
from sinks.errors import UserError
from sinks.families.causal_lm import AUXILIARY_LOSS, TASK_LOSS
from sinks.lightning_private import resume_between_steps
from sinks.parallel.ranks import data_ranks
from sinks.record import RunFolder
from sinks.record.logger import EventLogger, RunFolderLogger, log_to_all

SUMMARY_KEYS = {
    "first_token_mass": "attention/first_token_mass",
    "first_token_mass_max_head": "attention/first_token_mass_max_head",
    "sink_ratio_0.3": "attention/sink_ratio_0.3",
    "sink_ratio_0.8": "attention/sink_ratio_0.8",
    "value_norm_ratio": "attention/value_norm_ratio",
    "value_norm_ratio_max_head": "attention/value_norm_ratio_max_head",
    "learned_sink_mass": "attention/learned_sink_mass",
    "gate_mean": "attention/gate_mean",
    "residual_max_abs": "residual/max_abs",
    "residual_max_over_median": "residual/max_over_median",
    "residual_sink_score": "residual/sink_score",
    "residual_sink_consistency": "residual/sink_consistency",
    "residual_kurtosis": "residual/kurtosis",
    "residual_p999": "residual/p999",
    "gain_at_sink": "norm/gain_at_sink",
    "norm_gate_mean": "norm/gate_mean",
    "clipped_share": "residual/clipped_share",
}


class RunRecorder(Callback):
    """Keeps the run folder. Losses are means over the steps since the last log; steps run without a host sync.

    What ranks must agree on is reduced with the logged loss, without an extra collective: from `rank_flags` to
    `mean_flags`, their means over ranks.

    Args:
        dir: the run folder.
        variant: name of the run in reports; the family's name if not given.
    """

    def __init__(self, dir: str, variant: str | None = None) -> None:
        if not str(dir).strip() or (Path(dir).exists() and not Path(dir).is_dir()):
            raise UserError(f"run.dir is {str(dir)!r}, but must name a folder: give one of the run's own")
        self.folder = RunFolder(dir)
        self.variant = variant
        self.identity: dict[str, Any] = {}
        self.diverged = False
        self.validated_at = -1
        self._validation_loss: float | None = None
        self.rank_flags: list[float] = []
        self.mean_flags: list[float] = []
        self._trainer: Trainer | None = None
        self._step_loss = StepLoss(TASK_LOSS)
        self._step_auxiliary = StepLoss(AUXILIARY_LOSS)
        self._loss: Tensor | None = None
        self._auxiliary: Tensor | None = None
        self._steps_in_loss = 0
        self._last: dict[str, float] = {}
        self._wall_before = self._started = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    # -- clocks and counts --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        loss, auxiliary = self._loss, self._auxiliary
        if loss is not None and self._trainer is not None:
            loss = self._trainer.strategy.reduce(loss.clone(), reduce_op="mean")
        if auxiliary is not None and self._trainer is not None:
            auxiliary = self._trainer.strategy.reduce(auxiliary.clone(), reduce_op="mean")
        accumulated = {"loss": loss, "auxiliary": auxiliary, "steps_in_loss": self._steps_in_loss, "last": self._last}
        validated = {"validated_at": self.validated_at, "validation_loss": self._validation_loss}
        return {"wall_s": self.wall_s} | accumulated | validated

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._wall_before = state_dict["wall_s"]
        self._loss, self._steps_in_loss = state_dict["loss"], state_dict["steps_in_loss"]
        self._auxiliary = state_dict.get("auxiliary")  # which earlier checkpoints lack
        self._last = state_dict["last"]
        self.validated_at = state_dict["validated_at"]
        self._validation_loss = state_dict["validation_loss"] if self.validated_at >= 0 else None

    @property
    def wall_s(self) -> float:
        return self._wall_before + (time.perf_counter() - self._started if self._started else 0.0)

    @staticmethod
    def tokens(trainer: Trainer) -> int:
        """Training tokens seen by all ranks up to now."""
        tokens = trainer.datamodule.batch_size * trainer.datamodule.context_length
        return trainer.global_step * tokens * data_ranks(trainer)[1] * trainer.accumulate_grad_batches

    # -- training -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            self.folder.truncate_after(trainer.global_step)
            for logger in trainer.loggers:
                if isinstance(logger, EventLogger):
                    logger.truncate_after(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # A stop that is asked for within an optimizer step, as max_time does, waits for its end.
        loop = trainer.fit_loop.epoch_loop
        loop.min_steps = max(loop.min_steps or 0, trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = self._step_loss.add(trainer, outputs, batch_idx)
        if loss is not None:
            self._loss = loss if self._loss is None else self._loss + loss
            self._steps_in_loss += 1
        auxiliary = self._step_auxiliary.add(trainer, outputs, batch_idx)
        if auxiliary is not None:
            self._auxiliary = auxiliary if self._auxiliary is None else self._auxiliary + auxiliary
        if due(trainer, batch_idx):
            self._log(trainer, pl_module)
        # The last step is validated whatever the interval, before the checkpoint, which then holds the whole run.
        trainer.should_stop |= trainer.global_step == trainer.max_steps

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._loss is not None
        sums = [self._loss] if self._auxiliary is None else [self._loss, self._auxiliary]
        means = torch.stack([each.to(self._loss) for each in sums]) / self._steps_in_loss
        over_ranks = trainer.strategy.reduce(torch.cat([means, means.new_tensor(self.rank_flags)]), reduce_op="mean")
        (loss, *auxiliary), self.mean_flags = over_ranks[: len(sums)].tolist(), over_ranks[len(sums) :].tolist()
        wall, tokens = self.wall_s, self.tokens(trainer)
        self._last = {
            "train/loss": loss,
            "train/gradient_norm": math.nan if pl_module.gradient_norm is None else float(pl_module.gradient_norm),
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        } | dict(zip(["train/auxiliary_loss"], auxiliary, strict=False))
        log_to_all(trainer, {"tokens": tokens, "wall_s": wall} | self._last, trainer.global_step)
        self._loss, self._auxiliary, self._steps_in_loss = None, None, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated_at = trainer.global_step
        self._validation_loss = float(trainer.callback_metrics["validation/loss"])
        log_to_all(trainer, {"validation/loss": self._validation_loss}, trainer.global_step)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        resume_between_steps(checkpoint, trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger):
                logger.save()

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Write summary.json and return it; called once, after the last validation."""
        statistics = next((c.latest for c in trainer.callbacks if isinstance(c, SinkStatistics)), {})
        wall, tokens = self.wall_s, self.tokens(trainer)
        summary = self.identity | {
            "steps": trainer.global_step,
            "tokens": tokens,
            "wall_s": wall,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "train_loss": self._last.get("train/loss"),
            "val_loss": self._validation_loss,
        }
        losses = [loss for loss in (summary["train_loss"], summary["val_loss"]) if loss is not None]
        summary["diverged"] = self.diverged or not all(map(math.isfinite, losses))
        summary["stopped_early"] = not summary["diverged"] and trainer.global_step < trainer.max_steps
        summary |= {name: statistics.get(key) for name, key in SUMMARY_KEYS.items()}
        stability = next((c.latest for c in trainer.callbacks if isinstance(c, Stability)), {})
        summary |= {key.removeprefix("train/"): value for key, value in stability.items()}
        summary |= next((c.summary(trainer) for c in trainer.callbacks if isinstance(c, Throughput)), {})
        if "train/auxiliary_loss" in self._last:
            summary["train_auxiliary_loss"] = self._last["train/auxiliary_loss"]
        if pl_module.averaging.description is not None:
            summary["averaging"] = pl_module.averaging.description
        if trainer.is_global_zero:
            self.folder.finish(summary)
        return summary
