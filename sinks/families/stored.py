"""Models of run folders: as their configuration describes them, with the weights of a checkpoint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning

from sinks.errors import UserError
from sinks.parallel.checkpoint_io import read_checkpoint
from sinks.record import RunFolder

if TYPE_CHECKING:
    from sinks.families.causal_lm import CausalLM


def instantiate(model: dict[str, Any], data: dict[str, Any]) -> tuple["CausalLM", lightning.LightningDataModule]:
    """Model and data from their `class_path` / `init_args` sections of a run's config.yaml."""
    from jsonargparse import ArgumentParser  # not on a bare GPU machine, where runs are not loaded by configuration

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningModule, "model")
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    for name in ("vocab_size", "context_length"):
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    built = parser.instantiate(parser.parse_object({"model": model, "data": data}))
    return built.model, built.data


def last_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The last complete checkpoint of a run folder.

    Raises:
        UserError: if there is none.
    """
    folder = RunFolder(path)
    if folder.last_checkpoint is None:
        raise UserError(f"{folder.path} has no complete checkpoint: restore it, or train it with checkpoints on")
    return folder.last_checkpoint


def stored_model(
    path: str | os.PathLike[str], checkpoint: Path | None = None
) -> tuple["CausalLM", lightning.LightningDataModule]:
    """The model of a run folder in evaluation mode, whatever strategy wrote its weights, and its own data module.

    Args:
        path: of the folder.
        checkpoint: of the run; the last one if not given.

    Raises:
        UserError: if the folder holds no run, or no checkpoint that can be read, of the architecture it configures.
    """
    config, chosen = RunFolder(path).config(), checkpoint or last_checkpoint(path)
    model, data = instantiate(config["model"], config["data"])
    model.configure_model()
    content = read_checkpoint(chosen, weights_alone=True)
    model.on_load_checkpoint(content)
    model.load_state_dict(content["state_dict"])
    return model.eval(), data
