"""User components and injected faults, named in configurations by import path."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from sinks.callbacks import Preemption
from sinks.families import CausalLM
from sinks.models.feed_forward import GELU, FeedForwardConfig
from sinks.models.norms import RMSNorm


class Signal(Callback):
    """Sends its own process a signal.

    Args:
        signum: which.
        step: after this optimizer step, its validation not yet run; 0: when a validation begins.
        rank: on this process.
        again_after_s: seconds until it is sent a second time; 0: never.
    """

    def __init__(self, signum: int, step: int, rank: int = 0, again_after_s: float = 0.0) -> None:
        self.signum, self.step, self.rank, self.again_after_s = signum, step, rank, again_after_s

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            self._send()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.step == 0:
            self._send()

    def _send(self) -> None:
        os.kill(os.getpid(), self.signum)
        if self.again_after_s:
            time.sleep(self.again_after_s)
            os.kill(os.getpid(), self.signum)


class Wait(Callback):
    """Waits after the third step until a file exists.

    Args:
        file: which.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        while trainer.global_step == 3 and not self.file.exists():
            time.sleep(0.05)


class Break(Callback):
    """Raises an error that nobody expects.

    Args:
        step: after this optimizer step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the plug was pulled")


class Keep(Callback):
    """Keeps the whole weights after an optimizer step, and when the run is interrupted.

    Args:
        folder: gets step.pt and end.pt.
        step: after which weights are kept.
    """

    def __init__(self, folder: str, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            self._keep(trainer, "step")

    def on_exception(self, trainer: lightning.Trainer, *rest: Any) -> None:
        self._keep(trainer, "end")

    def _keep(self, trainer: lightning.Trainer, name: str) -> None:
        weights = {k: v.clone() for k, v in trainer.strategy.lightning_module_state_dict().items()}
        if trainer.is_global_zero:
            torch.save(weights, f"{self.folder}/{name}.pt")


class Kill(Signal):
    """SIGKILL after an optimizer step."""

    def __init__(self, step: int, rank: int = 0) -> None:
        super().__init__(signal.SIGKILL, step, rank)


class DroppedGELU(GELU):
    """GELU with dropout: it draws from torch's generator in every training step.

    Args:
        config: widths, names and initialization.
    """

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(super().forward(x))


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


class PoisonedNorm(RMSNorm):
    """RMSNorm, which while poisoned gives an infinity, forward or backward.

    Args:
        d_model: width of the residual stream.
    """

    poison: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.poison == "forward":
            return torch.cat([y[..., :1] + torch.inf, y[..., 1:]], dim=-1)
        return _InfiniteGradient.apply(y) if self.poison == "backward" else y


class Poisoned(CausalLM):
    """Gives an infinity in the head's norm on batches that hold one row.

    Args:
        poison: "forward", "backward", "loss", or "once": forward, but not a second time.
        row: the row's token ids, in decimal, joined by points.
    """

    def __init__(self, poison: str, row: str, **options: Any) -> None:
        super().__init__(head_norm=PoisonedNorm, **options)
        self.hits = 0
        self.poison, self.row = poison, [int(token) for token in row.split(".")]

    def loss(self, rows: Tensor) -> Tensor:
        hit = bool((rows.cpu() == torch.tensor(self.row)).all(dim=1).any()) and self.training
        self.hits += hit
        poison = {"once": "forward" if self.hits == 1 else None}.get(self.poison, self.poison) if hit else None
        assert self.decoder is not None
        self.decoder.head_norm.norm.poison = poison  # type: ignore[assignment]
        return super().loss(rows) + (torch.inf if poison == "loss" else 0.0)


class DrawApart(Callback):
    """Seeds each rank's generator differently when training starts."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.manual_seed(trainer.global_rank)


class Delete(Callback):
    """Deletes files after an optimizer step.

    Args:
        pattern: of the files, below `folder`.
        folder: that contains them.
        step: after which.
    """

    def __init__(self, pattern: str, folder: str, step: int) -> None:
        self.pattern, self.folder, self.step = pattern, folder, step

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            for file in Path(self.folder).glob(self.pattern):
                file.unlink()


class Late(Callback):
    """Makes it an hour later after an optimizer step.

    Args:
        step: after which.
        rank: on this process.
    """

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            (preemption,) = (c for c in trainer.callbacks if isinstance(c, Preemption))
            preemption.clock.load_state_dict({"time_elapsed": {"train": 3600.0}})
