"""When statistics are taken and where they go."""

from sinks.callbacks.checkpoints import RunCheckpoints
from sinks.callbacks.divergence import Divergence
from sinks.callbacks.health import HealthNotes
from sinks.callbacks.preemption import Preemption
from sinks.callbacks.progress import LineProgress
from sinks.callbacks.random_state import RandomState
from sinks.callbacks.recorder import RunRecorder
from sinks.callbacks.stability import Stability
from sinks.callbacks.statistics import SinkStatistics
from sinks.callbacks.throughput import Throughput

__all__ = [
    "HealthNotes", "LineProgress", "RunRecorder", "SinkStatistics", "Stability", "Throughput", "Divergence",
    "Preemption", "RandomState", "RunCheckpoints",
]  # fmt: skip
