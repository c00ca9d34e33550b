"""Weights of another run as the start of a model that has parts which that run's lacks: gates, PreAffine, sinks.

A part may be new if its class says in `added` that it leaves the model as it is; a module that a new one `wraps` keeps
its weights. Nothing else may differ.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from sinks.errors import UserError
from sinks.families.stored import last_checkpoint
from sinks.models.decoder import Decoder
from sinks.parallel.checkpoint_io import read_checkpoint, sizes, weight_sizes

Value = TypeVar("Value")
Sizes = Mapping[str, tuple[int, ...]]
PREFIX = "decoder."


def start_checkpoint(start_from: str | os.PathLike[str]) -> Path:
    """The checkpoint of a run folder that a run starts from.

    Raises:
        UserError: if it is no run folder, or has no complete checkpoint.
    """
    folder = Path(start_from)
    if not folder.is_dir():
        raise UserError(f"model.start_from is {folder}, which is no folder: give a run folder, as sinks import writes")
    if (folder / "config.json").is_file():
        raise UserError(
            f"model.start_from is {folder}, a Hugging Face model: run sinks import on it, and give the run folder"
        )
    return last_checkpoint(folder)


def check_start(decoder: Decoder, start_from: str | os.PathLike[str]) -> Path:
    """Compare a decoder with the weights it is to start from, without reading them.

    Returns:
        The checkpoint that holds them.

    Raises:
        UserError: as `stored_names`.
    """
    checkpoint = start_checkpoint(start_from).resolve()
    stored_names(decoder, _within_decoder(weight_sizes(checkpoint)), str(start_from))
    return checkpoint


@torch.no_grad()
def start(decoder: Decoder, start_from: str | os.PathLike[str]) -> None:
    """Load the weights of a run folder into a decoder, sharded or not; parameters that are new keep their values.

    Raises:
        UserError: as `stored_names`.
    """
    weights = _within_decoder(read_checkpoint(start_checkpoint(start_from), weights_alone=True)["state_dict"])
    names = stored_names(decoder, sizes(weights), str(start_from))
    found = {own: weights[stored] for own, stored in names.items()}
    set_model_state_dict(decoder, found, options=StateDictOptions(full_state_dict=True, strict=False))


def stored_names(decoder: Decoder, stored: Sizes, source: str) -> dict[str, str]:
    """The stored name of each weight of a decoder that is not new.

    Args:
        decoder: on any device.
        stored: names in a decoder's state, and sizes.
        source: where they are, for messages.

    Raises:
        UserError: naming the first weight that is missing and may not be new, is of another size, or has no place.
    """
    modules = dict(decoder.named_modules())
    new = {f"{path}.{name}" for path, module in modules.items() for name in getattr(module, "added", ())}
    wrapped = {f"{path}.{module.wraps}.": f"{path}." for path, module in modules.items() if hasattr(module, "wraps")}
    found: dict[str, str] = {}
    for own, size in sizes(decoder.state_dict()).items():
        name = own if own in stored else _unwrapped(own, wrapped)
        if name not in stored and own in new:
            continue
        if stored.get(name) != size:
            raise UserError(
                f"{own} is {size}, but {stored.get(name, 'absent')} in {source}: give the architecture of its "
                "config.yaml, and of new parts only those that leave the model as it is, e.g. IdentityGatedNorm, "
                "IdentityHeadwiseGate, PreAffine, LearnableSink"
            )
        found[own] = name
    unused = sorted(stored.keys() - found.values())
    if unused:
        raise UserError(f"{unused[0]} in {source} has no place in the model: give a model that has the part, too")
    return found


def _unwrapped(name: str, wrapped: Mapping[str, str]) -> str:
    """The name of a parameter without the module that is wrapped around its own."""
    for inner, outer in wrapped.items():
        if name.startswith(inner):
            return outer + name.removeprefix(inner)
    return name


def _within_decoder(state: Mapping[str, Value]) -> dict[str, Value]:
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
