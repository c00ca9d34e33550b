"""One line per so many steps: readable in a terminal and a log file, also with other runs."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sinks.callbacks.recorder import RunRecorder
from sinks.callbacks.statistics import SinkStatistics

SHOWN = {"attention/first_token_mass_max_head": "first-token mass {:.2f}", "residual/sink_score": "R {:.1f}"}


class LineProgress(Callback):
    """Prints a line after every validation.

    Args:
        enabled: whether to print.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self.enabled and trainer.is_global_zero and trainer.state.fn == "fit"):
            return
        callbacks: list[Any] = trainer.callbacks
        statistics = next((c.latest for c in callbacks if isinstance(c, SinkStatistics)), {})
        recorder = next(c for c in callbacks if isinstance(c, RunRecorder))
        identity = recorder.identity
        loss = float(trainer.callback_metrics.get("validation/loss", math.nan))
        parts = [
            f"{identity.get('variant', '')} seed {identity.get('seed', '')}",
            f"step {trainer.global_step}/{trainer.max_steps}",
            f"loss {loss:.3f}",
        ]
        for key, text in SHOWN.items():
            if key in statistics:
                parts.append(text.format(statistics[key]))
        print(" | ".join([*parts, f"{recorder.wall_s:.0f} s"]), flush=True)
