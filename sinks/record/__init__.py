"""The run folder: its one writer and its one reader, fingerprints and provenance."""

from sinks.record.folder import RunFolder, Statistics, find_runs

__all__ = ["RunFolder", "Statistics", "find_runs"]
