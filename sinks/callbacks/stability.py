"""Stability of training from its loss and gradient norm of every step: spikes, tail of the norm, clip crossings."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sinks.callbacks.course import StepLoss
from sinks.families.causal_lm import TASK_LOSS
from sinks.record.logger import log_to_all
from sinks.stats.stability import stability_statistics

KEYS = {
    "train/loss_spikes_per_10k": "spikes_per_10k",
    "train/gradient_norm_p999": "gradient_norm_p999",
    "train/clip_crossings_per_10k": "clip_crossings_per_10k",
}


class Stability(Callback):
    """Keeps both series, on the device between validations, and logs their statistics with every validation."""

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.gradient_norm: list[float] = []
        self.latest: dict[str, float] = {}
        self._trainer: Trainer | None = None
        self._step_loss = StepLoss(TASK_LOSS)
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        if self._trainer is not None:
            self._gather(self._trainer)
        series = {"loss": torch.tensor(self.loss), "gradient_norm": torch.tensor(self.gradient_norm)}
        return series | {"latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss, self.gradient_norm = state_dict["loss"].tolist(), state_dict["gradient_norm"].tolist()
        self.latest = state_dict["latest"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = self._step_loss.add(trainer, outputs, batch_idx)
        if loss is not None and pl_module.gradient_norm is not None:
            self._losses.append(loss)
            self._norms.append(pl_module.gradient_norm.detach())
        if len(self._losses) >= 1000 or trainer.global_step == trainer.max_steps:
            self._gather(trainer)

    def _gather(self, trainer: Trainer) -> None:
        """Move the accumulated values to the host, the loss as the mean over ranks."""
        if self._losses:
            self.loss += trainer.strategy.reduce(torch.stack(self._losses), reduce_op="mean").tolist()
            self.gradient_norm += torch.stack(self._norms).tolist()
            self._losses, self._norms = [], []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self._gather(trainer)
        found = stability_statistics(self.loss, self.gradient_norm, trainer.gradient_clip_val)
        self.latest = {key: found[name] for key, name in KEYS.items()}
        log_to_all(trainer, self.latest, trainer.global_step)
