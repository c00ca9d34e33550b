"""Checkpoints on disk: one file, or a folder of shards; written atomically, and read by every strategy.

A file has Lightning's format. A folder holds the same: tensors of the model and the optimizers as sharded over the
processes that wrote it, and the rest in `meta.pt`. Reading either never runs code.
"""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sinks.errors import UserError
from sinks.parallel.optimizer_states import state_by_index
from sinks.parallel.safe_shard_reader import ShardReader, WholePlainValues, read_shards, unreadable
from sinks.record.atomic import disk_full, replacing
from sinks.record.checkpoints import INDEX, REST


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder of shards."""
    return (path / INDEX).is_file()


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """Write one file and sync it to the disk: some file systems report only then that they are full."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def read_file(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read one file, of tensors and plain values, into CPU memory; with `mmap` tensors stay on the disk until used.

    Raises:
        UserError: if it is damaged, no checkpoint, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise unreadable(path, error) from error


def read_checkpoint(path: Path, weights_alone: bool = False) -> dict[str, Any]:
    """An unsharded checkpoint, whatever strategy wrote it; a folder of shards is assembled in memory.

    Args:
        path: a file or a folder of shards.
        weights_alone: only `state_dict`, not the states of optimizers, callbacks and loops.

    Raises:
        UserError: as `read_file`.
    """
    if not is_sharded(path):
        return read_file(path)
    state: dict[str, Any] = {}
    read_shards(state, path, WholePlainValues(keys={"state_dict"} if weights_alone else None), alone=True)
    if weights_alone:
        return state
    optimizers = sum(name.startswith("optimizer_") for name in state)
    state["optimizer_states"] = [state_by_index(state.pop(f"optimizer_{i}")) for i in range(optimizers)]
    return read_file(path / REST) | state


def sizes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and whole sizes of weights, sharded or not."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def weight_sizes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and sizes of a checkpoint's weights, without reading them."""
    if not is_sharded(path):
        return sizes(read_file(path, mmap=True)["state_dict"])
    index = ShardReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix("state_dict."): tuple(entry.size)
        for name, entry in index.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }


def reject_another_architecture(stored: Mapping[str, tuple[int, ...]], own: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the weights of a checkpoint with the model's.

    Args:
        stored: name -> size, in the checkpoint.
        own: name -> size, in the model.

    Raises:
        UserError: naming the first that differs.
    """
    for name in sorted(own.keys() | stored.keys()):
        if own.get(name) != stored.get(name):
            raise UserError(
                f"the checkpoint is of another architecture: {name} is {stored.get(name, 'absent')} there and "
                f"{own.get(name, 'absent')} here: use the config.yaml of the checkpoint's run folder"
            )


class RunCheckpointIO(TorchCheckpointIO):
    """For one process and DDP: writes a file at a temporary path and renames it; reads files and folders of shards.

    Lightning writes into the system's temporary folder and moves the file from there, which between two file systems
    is a copy that a kill can truncate.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary:
            write_file(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def run_collectively(action: Callable[[], None]) -> None:
    """Run on every process; a failure on one is raised on all, so that none waits for a failed one.

    Args:
        action: which either waits for the other processes on all of them, or on none.

    Raises:
        OSError: on every process, if a disk is full on one.
        RuntimeError: if another process raised anything else.
    """
    failure: Exception | None = None
    try:
        action()
    except Exception as error:
        failure = error
    failures: list[Any] = [None]
    if dist.is_initialized():
        full = disk_full(failure)
        other = failure and f"{type(failure).__name__}: {failure}"
        own = (full.errno, full.strerror, full.filename) if full else other
        failures = [None] * dist.get_world_size()
        dist.all_gather_object(failures, own)
    if failure is not None:
        raise failure
    for rank, other in enumerate(failures):
        if isinstance(other, tuple):
            raise OSError(*other)
        if other is not None:
            raise RuntimeError(f"process {rank} failed: {other}")
