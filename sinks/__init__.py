"""Train, measure, question and replace attention sinks and residual sinks."""

__version__ = "0.1.0"
