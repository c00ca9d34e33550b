"""Where a trainer is within an optimizer step and between logs."""

from typing import Any

from lightning import Trainer
from torch import Tensor

from sinks.families.causal_lm import TASK_LOSS


def last_micro_batch(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch is the last one that is accumulated for an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def due(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer step that a batch has just ended is logged: every so many, and the last one."""
    step = trainer.global_step
    logged = step % trainer.log_every_n_steps == 0 or step == trainer.max_steps
    return logged and last_micro_batch(trainer, batch_idx)


class StepLoss:
    """Loss of an optimizer step, the mean over its micro-batches, which are of equal size; stays on the device.

    Args:
        key: of the outputs of a training step: what is minimized, or one of its terms.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._sum: Tensor | None = None

    def add(self, trainer: Trainer, outputs: Any, batch_idx: int) -> Tensor | None:
        """Add the outputs of a training step; the loss if this micro-batch was the last one of the optimizer step, and
        training has such a loss."""
        if self._key in outputs:
            share = outputs[self._key] / trainer.accumulate_grad_batches
        elif self._key == TASK_LOSS:  # a module that returns the loss alone, which Lightning has divided
            share = outputs["loss"].detach()
        else:
            return None
        first = batch_idx % trainer.accumulate_grad_batches == 0
        self._sum = share if first or self._sum is None else self._sum + share
        return self._sum if last_micro_batch(trainer, batch_idx) else None
