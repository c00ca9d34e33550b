"""Ranges of the trainer's numbers that Lightning accepts and then fails on, or trains wrongly with."""

from collections.abc import Mapping
from typing import Any

from sinks.errors import require

SMALLEST = {
    "log_every_n_steps": 1,
    "gradient_clip_val": 0,
    "num_nodes": 1,
}


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Validate the numbers among a trainer's options; what is no number is Lightning's to check.

    Raises:
        UserError: naming the option, its value and the smallest one.
    """
    for name, smallest in SMALLEST.items():
        value = options.get(name)
        if isinstance(value, (int, float)):
            require(f"trainer.{name}", value, at_least=smallest, remedy="leave it out for the default")
