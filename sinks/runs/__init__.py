"""The lifecycle of a run: from the command line, a notebook, or a benchmark."""

from sinks.runs.load import LoadedRun, load_run
from sinks.runs.train import train

__all__ = ["LoadedRun", "load_run", "train"]
