"""Where a trainer is within an optimizer step and between logs."""

from lightning import Trainer


def last_micro_batch(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch is the last one that is accumulated for an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def due(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer step that a batch has just ended is logged: every so many, and the last one."""
    step = trainer.global_step
    logged = step % trainer.log_every_n_steps == 0 or step == trainer.max_steps
    return logged and last_micro_batch(trainer, batch_idx)
