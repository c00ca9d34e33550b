"""What an optimizer step is: options of Lightning's trainer that count in micro-batches, epochs or time."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

from sinks.errors import UserError

# With any other value epochs end, which cuts their last step short and starts the stream of data anew, or count.
ENDLESS: dict[str, tuple[Any, ...]] = {
    "limit_train_batches": (None, 1.0),
    "overfit_batches": (None, 0, 0.0),
    "fast_dev_run": (None, False, 0),
    "check_val_every_n_epoch": (None,),
    "min_epochs": (None, 0),
}


def validation_in_steps(options: Mapping[str, Any], callbacks: list[Callback]) -> dict[str, Any]:
    """The trainer's `val_check_interval` in micro-batches, as Lightning counts, of a number of optimizer steps.

    Args:
        options: of the trainer.
        callbacks: of the user.

    Returns:
        Options that replace those given.

    Raises:
        UserError: if an option would change what a step is, or does not count in steps.
    """
    for name, values in ENDLESS.items():
        value = options.get(name)
        if not any(type(value) is type(allowed) and value == allowed for allowed in values):
            raise UserError(
                f"trainer.{name} is {value}, but training is one endless stream of steps: leave it out, and limit "
                "training by trainer.max_steps"
            )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise UserError(
            "trainer.callbacks has a GradientAccumulationScheduler, but all steps must have as many rows: give "
            "trainer.accumulate_grad_batches"
        )
    accumulated = options.get("accumulate_grad_batches", 1)
    if not _positive(accumulated):
        raise UserError(
            f"trainer.accumulate_grad_batches is {accumulated}, but must be at least 1: give 1 to accumulate nothing"
        )
    interval = options.get("val_check_interval")
    if interval is None:
        return {}
    if not _positive(interval):
        raise UserError(
            f"trainer.val_check_interval is {interval}, but counts optimizer steps: give a whole number from 1 on"
        )
    return {"val_check_interval": interval * accumulated}


def _positive(value: Any) -> bool:
    return type(value) is int and value >= 1
