"""Checkpoints of a model whose parameters are sharded over processes."""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from sinks.lightning_private import MeshStrategy
from sinks.parallel import checkpoint_io as files
from sinks.parallel.checkpoint_io import is_sharded, read_file, run_collectively, write_file
from sinks.parallel.optimizer_states import state_by_name
from sinks.parallel.safe_shard_reader import PlainValues, read_shards
from sinks.record.atomic import disk_full, remove, replace_atomically, temporary_path, with_filename
from sinks.record.checkpoints import REST


def _write_shards(state: dict[str, Any], folder: Path) -> None:
    try:
        dcp.save(state, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:  # not an Exception subclass; raised on all processes if any fails
        (failure, _), *_ = error.failures.values()
        raise disk_full(error) or RuntimeError(f"shards could not be written: {failure}") from error


class ShardedCheckpoints(MeshStrategy):
    """Lightning's strategy for sharded models, with atomically written checkpoints.

    It reads folders of shards that any number of processes wrote, and files of any strategy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a folder of shards, or one file if `save_distributed_checkpoint` is off.

        Args:
            checkpoint: on every process its own part.
            filepath: the same for all; in a file system that all of them see.
            storage_options: ignored.

        Raises:
            OSError: on every process, if a disk is full for one; what is at `filepath` stays as it was.
        """
        if not self.saves_shards:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath)
            return
        path, temporary = self.broadcast((Path(filepath), temporary_path(Path(filepath))))
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": each for i, each in enumerate(checkpoint.pop("optimizer_states", []))}

        def begin() -> None:
            if self.is_global_zero:
                remove(temporary)
                temporary.mkdir(parents=True)

        def finish() -> None:
            if self.is_global_zero:
                write_file(checkpoint, temporary / REST)
                replace_atomically(temporary, path)

        try:
            with with_filename(path):
                run_collectively(begin)
                run_collectively(lambda: _write_shards(state, temporary))
                run_collectively(finish)
        except BaseException:
            if self.is_global_zero:
                remove(temporary)
            raise

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the model's and the optimizers' states in place from a checkpoint of any strategy, and return the rest.

        Raises:
            UserError: if the architecture differs, or the checkpoint is damaged or holds more than tensors and values.
        """
        path = Path(self.broadcast(checkpoint_path))
        model = self.model
        assert model is not None
        files.reject_another_architecture(files.weight_sizes(path), files.sizes(get_model_state_dict(model)))
        if is_sharded(path):
            state: dict[str, Any] = {"state_dict": get_model_state_dict(model)}
            for i, optimizer in enumerate(self.optimizers):
                state[f"optimizer_{i}"] = get_optimizer_state_dict(model, optimizer)
            read_shards(state, path, PlainValues())
            set_model_state_dict(model, state["state_dict"])
            for i, optimizer in enumerate(self.optimizers):
                set_optimizer_state_dict(model, optimizer, state[f"optimizer_{i}"])
            return read_file(path / REST)
        # Every process maps the file and reads its own part of it.
        checkpoint = read_file(path, mmap=True)
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, checkpoint.pop("state_dict"), options=whole)
        for optimizer, each in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=False):
            set_optimizer_state_dict(model, optimizer, state_by_name(each, model, optimizer), options=whole)
        return checkpoint
