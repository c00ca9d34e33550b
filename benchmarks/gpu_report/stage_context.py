"""The context of a stage."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class StageContext:
    """Where, how thoroughly and until when a stage measures.

    Args:
        folder: the stage's working folder, not for results.
        dry: tiny sizes, to test that everything runs; also without a GPU.
        minutes: its part of the budget.
        deadline: `time.monotonic()` after which it starts nothing new.
        before: its result until now, of commands that ended before it was done; {} for none. What it has is not
            measured again, except what failed.
    """

    folder: Path
    dry: bool
    minutes: float
    deadline: float
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def late(self) -> bool:
        return self.seconds_left <= 0
