"""When statistics are taken and where they go."""

from sinks.callbacks.health import HealthNotes
from sinks.callbacks.progress import LineProgress
from sinks.callbacks.recorder import RunRecorder
from sinks.callbacks.stability import Stability
from sinks.callbacks.statistics import SinkStatistics

__all__ = ["HealthNotes", "LineProgress", "RunRecorder", "SinkStatistics", "Stability"]
