"""`sinks check`: properties of every variant, tested on one."""

from sinks.checks.check import Line, check
from sinks.checks.properties import PROPERTIES

__all__ = ["PROPERTIES", "Line", "check"]
