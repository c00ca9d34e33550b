"""Loads a finished run as a model and its data, for notebooks and probes."""

import os
from dataclasses import dataclass
from typing import Any

import lightning

from sinks.errors import UserError
from sinks.families.causal_lm import CausalLM
from sinks.parallel.checkpoint_io import read_checkpoint
from sinks.record import RunFolder


@dataclass(frozen=True)
class LoadedRun:
    """A run's folder, its model in evaluation mode with the weights of the checkpoint, and its own data module."""

    folder: RunFolder
    model: CausalLM
    data: lightning.LightningDataModule


def instantiate(model: dict[str, Any], data: dict[str, Any]) -> tuple[CausalLM, lightning.LightningDataModule]:
    """Model and data from their `class_path` / `init_args` sections of a run's config.yaml."""
    from jsonargparse import ArgumentParser  # not on a bare GPU machine, where runs are not loaded by configuration

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningModule, "model")
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    for name in ("vocab_size", "context_length"):
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    built = parser.instantiate(parser.parse_object({"model": model, "data": data}))
    return built.model, built.data


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Build the model and data of a run folder and load its last checkpoint, whatever strategy wrote it.

    Raises:
        UserError: if the folder holds no run, or no checkpoint that can be read, of the architecture it configures.
    """
    folder = RunFolder(path)
    config = folder.config()
    last = folder.last_checkpoint
    if last is None:
        raise UserError(f"{folder.path} has no complete checkpoint: restore it, or train it with checkpoints on")
    model, data = instantiate(config["model"], config["data"])
    model.configure_model()
    checkpoint = read_checkpoint(last, weights_alone=True)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return LoadedRun(folder, model.eval(), data)
