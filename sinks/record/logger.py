"""A Lightning logger that writes the run folder, so that everything logged is stored there too."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from sinks.record.board import tag_of
from sinks.record.folder import RunFolder, Statistics, join


class RunFolderLogger(Logger):
    """metrics.jsonl and statistics/ of a run folder; what is logged at one step is merged into one line.

    Args:
        directory: the run folder.
        flush_every: logged statistics per file.
    """

    def __init__(self, directory: str, flush_every: int = 50) -> None:
        super().__init__()
        self.folder = RunFolder(directory)
        self.flush_every = flush_every
        self._line: dict[str, Any] = {}
        self._statistics: dict[str, list[Statistics]] = {}

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder.path)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The recorder writes the resolved configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        metrics = {k: v for k, v in metrics.items() if k != "epoch"}
        if step is None or not metrics:
            return
        if self._line and (self._line["step"] != step or metrics.keys() & self._line.keys()):
            self._write_line()
        self._line = {"step": step} | self._line | metrics

    @rank_zero_only
    def log_statistics(self, stage: str, statistics: Statistics) -> None:
        kept = self._statistics.setdefault(stage, [])
        kept.append(statistics)
        if len(kept) >= self.flush_every:
            self._write_statistics(stage)

    def _write_line(self) -> None:
        self.folder.append_metrics([self._line])
        self._line = {}

    def _write_statistics(self, stage: str) -> None:
        self.folder.append_statistics(stage, join(self._statistics.pop(stage)))

    @rank_zero_only
    def save(self) -> None:
        """Flush: called when a checkpoint is taken, and at the end."""
        if self._line:
            self._write_line()
        for stage in list(self._statistics):
            self._write_statistics(stage)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if Path(self.save_dir).exists():
            self.save()


class EventLogger(TensorBoardLogger):
    """TensorBoard events of a run folder; the configuration is in config.yaml, so no hparams.yaml is written."""

    def __init__(self, directory: str, **kwargs: Any) -> None:
        super().__init__(directory, name="", version="", **kwargs)

    @rank_zero_only
    def truncate_after(self, step: int) -> None:
        """Make readers drop the events after `step`: called when a run resumes from a checkpoint of that step."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

        started = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(started)

    @rank_zero_only
    def save(self) -> None:
        if self._experiment is not None:
            self._experiment.flush()


def log_to_all(trainer: lightning.Trainer, metrics: dict[str, float], step: int) -> None:
    """Log at an optimizer step, counted from 1, to every logger of the trainer; TensorBoard has names of its own."""
    for logger in trainer.loggers:
        own = isinstance(logger, TensorBoardLogger)
        logger.log_metrics({tag_of(key): value for key, value in metrics.items()} if own else metrics, step)
