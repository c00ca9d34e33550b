"""What a stage is given."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sinks.record.folder import from_json

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class StageContext:
    """Where, how thoroughly and until when a stage measures.

    Args:
        output: folder of the report, with the results of earlier stages.
        folder: folder of the stage's own, for what is no result.
        dry: tiny sizes, to see that all runs; also without a GPU.
        minutes: its share of the budget.
        deadline: `time.monotonic()` at which it takes on nothing more.
    """

    output: Path
    folder: Path
    dry: bool
    minutes: float
    deadline: float

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def late(self) -> bool:
        return self.seconds_left <= 0

    def result_of(self, file: str) -> dict:
        """The result of an earlier stage, empty if there is none."""
        path = self.output / f"{file}.json"
        return from_json(path.read_text(encoding="utf-8"))["result"] if path.is_file() else {}
