"""Loads a finished run as a model and its data, for notebooks and probes."""

import os
from dataclasses import dataclass
from pathlib import Path

import lightning

from sinks.families.causal_lm import CausalLM
from sinks.families.stored import stored_model
from sinks.record import RunFolder


@dataclass(frozen=True)
class LoadedRun:
    """A run's folder, its model in evaluation mode with the weights of the checkpoint, and its own data module."""

    folder: RunFolder
    model: CausalLM
    data: lightning.LightningDataModule


def load_run(path: str | os.PathLike[str], checkpoint: Path | None = None) -> LoadedRun:
    """Build the model and data of a run folder and load a checkpoint, whatever strategy wrote it.

    Args:
        path: of the folder.
        checkpoint: of the run; the last one if not given.

    Raises:
        UserError: if the folder holds no run, or no checkpoint that can be read, of the architecture it configures.
    """
    model, data = stored_model(path, checkpoint)
    return LoadedRun(RunFolder(path), model, data)
