"""Loads a finished run as a model and its data, for notebooks and probes."""

import os
from dataclasses import dataclass

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


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Build the model and data of a run folder and load its last checkpoint, whatever strategy wrote it.

    Raises:
        UserError: if the folder holds no run, or no checkpoint that can be read, of the architecture it configures.
    """
    model, data = stored_model(path)
    return LoadedRun(RunFolder(path), model, data)
