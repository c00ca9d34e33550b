"""Notes in the log on notable events: a sink forms or vanishes, values grow without bound, a gate saturates."""

from dataclasses import dataclass

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sinks.callbacks.statistics import SinkStatistics
from sinks.models.attention_gates import AttentionGate
from sinks.record import Statistics

SINK_HEAD = 0.3
CLOSED, OPEN = 0.05, 0.95  # of the largest value


@dataclass(frozen=True)
class Watch:
    """A count that makes a note when it leaves zero, doubles, or returns to zero.

    Args:
        count: now.
        of: how many there could be, None if unbounded.
        what: what was counted, e.g. "attention sink".
        where: in what, e.g. "heads".
        named: the sites of those that were counted; empty if they are not named.
    """

    count: int
    of: int | None
    what: str
    where: str
    named: str = ""

    def note(self, before: int) -> str | None:
        """The sentence, or None if nothing worth one happened since the count was `before`."""
        among = f"{self.count} of {self.of} {self.where}" if self.of is not None else f"{self.count} {self.where}"
        among += f" ({self.named})" if self.named else ""
        if self.count and not before:
            return f"{self.what} formed in {among}"
        if self.count >= 2 * max(before, 1):
            return f"{self.what} now in {among}"
        if before and not self.count:
            return f"{self.what} gone from all {self.where}"
        return None


def watched(scalars: dict[str, float], statistics: Statistics, gate_limit: float = 1.0) -> list[Watch]:
    """What is counted in one validation's statistics; `gate_limit` is the largest value of the attention gates.

    Gates without a limit do not saturate.
    """
    watches = []
    mass = statistics.arrays.get("attention/first_token_mass")
    if mass is not None:
        watches.append(Watch(int((mass[0] > SINK_HEAD).sum()), mass[0].size, "attention sink", "heads"))
    scores = statistics.arrays.get("residual/sink_score")
    if scores is not None:
        sinks = round(scores[0].size * float(np.nan_to_num(scalars["residual/sink_sites"])))
        watches.append(Watch(sinks, scores[0].size, "residual sink", "norm sites"))
    for key, what in (("massive_activations", "massive activations"), ("nonfinite", "NaN or infinity")):
        if f"residual/{key}" in scalars:
            watches.append(Watch(int(np.nan_to_num(scalars[f"residual/{key}"])), None, what, "values"))
    gate = statistics.arrays.get("attention/gate_mean")
    if gate is not None and np.isfinite(gate_limit):
        saturated = (gate[0] < CLOSED * gate_limit) | (gate[0] > OPEN * gate_limit)
        layers = zip(statistics.sites["attention"], saturated, strict=True)
        named = ", ".join(site for site, heads in layers if heads.any())
        watches.append(Watch(int(saturated.sum()), gate[0].size, "a saturated gate", "heads", named))
    return watches


class HealthNotes(Callback):
    """Prints a line after a validation in which something formed, doubled or vanished.

    Args:
        enabled: whether to print.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._before: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        return self._before

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._before = dict(state_dict)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        source = next((c for c in trainer.callbacks if isinstance(c, SinkStatistics)), None)
        if source is None or source.latest_arrays is None or not trainer.is_global_zero:
            return
        limits = {module.limit for module in pl_module.modules() if isinstance(module, AttentionGate)}
        for watch in watched(source.latest, source.latest_arrays, max(limits, default=1.0)):
            note = watch.note(self._before.get(watch.what, 0))
            self._before[watch.what] = watch.count
            if note and self.enabled and trainer.state.fn == "fit":
                print(f"note: {note} at step {trainer.global_step}", flush=True)
