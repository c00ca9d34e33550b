"""Writes a run's folder: configuration, provenance, losses, and at the end the summary."""

import math
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sinks.callbacks.stability import Stability, whole
from sinks.callbacks.statistics import SinkStatistics
from sinks.record import RunFolder
from sinks.record.logger import RunFolderLogger, log_to_all

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
    """Keeps the run folder. Losses are means over the steps since the last log; a step costs no host synchronisation.

    Args:
        dir: the run folder.
        variant: name of the run in reports; the family's name if not given.
    """

    def __init__(self, dir: str, variant: str | None = None) -> None:
        self.folder = RunFolder(dir)
        self.variant = variant
        self.identity: dict[str, Any] = {}
        self.diverged = False
        self.validated_at = -1
        self._loss: Tensor | None = None
        self._steps_in_loss = 0
        self._last: dict[str, float] = {}
        self._wall_before = 0.0
        self._started = 0.0
        self._logged_at = (0.0, 0)

    # -- clocks and counts --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"wall_s": self.wall_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._wall_before = state_dict["wall_s"]

    @property
    def wall_s(self) -> float:
        return self._wall_before + (time.perf_counter() - self._started if self._started else 0.0)

    @staticmethod
    def tokens(trainer: lightning.Trainer) -> int:
        """Training tokens seen by all ranks up to now."""
        data = trainer.datamodule
        per_step = data.batch_size * data.context_length * trainer.world_size * trainer.accumulate_grad_batches
        return trainer.global_step * per_step

    # -- training -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started = time.perf_counter()
        self._logged_at = (self.wall_s, self.tokens(trainer))
        if trainer.is_global_zero:
            self.folder.cut_back(trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        self._loss = loss if self._loss is None else self._loss + loss
        self._steps_in_loss += 1
        last_micro_batch = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if last_micro_batch and due:
            self._log(trainer, pl_module)

    def _log(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert self._loss is not None
        loss = trainer.strategy.reduce(self._loss.clone() / self._steps_in_loss, reduce_op="mean")
        wall, tokens = self.wall_s, self.tokens(trainer)
        before_wall, before_tokens = self._logged_at
        self._last = {
            "train/loss": float(loss),
            "train/gradient_norm": math.nan
            if pl_module.gradient_norm is None
            else float(whole(pl_module.gradient_norm)),
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/tokens_per_second": (tokens - before_tokens) / max(wall - before_wall, 1e-9),
        }
        log_to_all(trainer, {"tokens": tokens, "wall_s": wall} | self._last, trainer.global_step)
        self._loss, self._steps_in_loss, self._logged_at = None, 0, (wall, tokens)
        if not math.isfinite(self._last["train/loss"]):
            self.diverged = True
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.validated_at = trainer.global_step
        log_to_all(
            trainer, {"validation/loss": float(trainer.callback_metrics["validation/loss"])}, trainer.global_step
        )

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger):
                logger.save()

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Write summary.json and return it; called once, after the last validation."""
        statistics = next((c.latest for c in trainer.callbacks if isinstance(c, SinkStatistics)), {})
        validation = trainer.callback_metrics.get("validation/loss", torch.tensor(math.nan))
        wall, tokens = self.wall_s, self.tokens(trainer)
        summary = self.identity | {
            "steps": trainer.global_step,
            "tokens": tokens,
            "wall_s": wall,
            "tokens_per_second": tokens / wall if wall else math.nan,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "train_loss": self._last.get("train/loss", math.nan),
            "val_loss": float(validation),
            "diverged": self.diverged or not math.isfinite(float(validation)),
        }
        summary |= {name: statistics.get(key) for name, key in SUMMARY_KEYS.items()}
        stability = next((c.latest for c in trainer.callbacks if isinstance(c, Stability)), {})
        summary |= {key.removeprefix("train/"): value for key, value in stability.items()}
        if trainer.is_global_zero:
            self.folder.finish(summary)
        return summary
