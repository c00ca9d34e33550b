"""Reads folders of shards as tensors and plain values: torch.distributed.checkpoint would run code in them."""

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from sinks.errors import UserError
from sinks.record.checkpoints import INDEX

# What an index is made of, besides dtypes.
METADATA_CLASSES = (
    "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
    "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
INDEX_CLASSES = frozenset(f"torch.distributed.checkpoint.metadata.{name}" for name in METADATA_CLASSES) | {
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.serialization._get_layout",
    "torch.Size",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
}


def unreadable(path: Path, error: BaseException) -> UserError:
    """The error for a file that is damaged, no checkpoint, or holds more than tensors and plain values."""
    (reason, *_) = str(error).splitlines() or [type(error).__name__]
    return UserError(
        f"{path} cannot be read as a checkpoint ({reason.rstrip('.: ')}): give another --ckpt_path, or "
        "remove it to resume from an older one"
    )


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if f"{module}.{name}" not in INDEX_CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index does")
        return super().find_class(module, name)


class ShardReader(FileSystemReader):
    """Reads a folder of shards; its index is rejected if it names any class outside `INDEX_CLASSES`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Names, sizes and places of the tensors."""
        file = Path(self.path) / INDEX
        try:
            with file.open("rb") as stream:
                metadata = _IndexUnpickler(stream).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError) as error:
            raise unreadable(file, error) from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class PlainValues(DefaultLoadPlanner):
    """Reads everything but tensors as plain values, into an existing state."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)


class WholePlainValues(PlainValues, _EmptyStateDictLoadPlanner):
    """The same into an empty state, filled with whole tensors of the given `keys`; None: of all."""


def read_shards(state: dict[str, Any], path: Path, planner: PlainValues, alone: bool = False) -> None:
    """Read a folder of shards into a state.

    Args:
        state: what is read, in place: tensors, whole or sharded, and plain values.
        path: the folder.
        planner: how.
        alone: whether this process reads without the others.
    """
    try:
        # Not the public `load`: it fills no empty state.
        _load_state_dict(state, storage_reader=ShardReader(path), planner=planner, no_dist=alone)
    except CheckpointException as error:
        (failure, _), *_ = error.failures.values()
        raise unreadable(path, failure) from error
    except (RuntimeError, pickle.UnpicklingError, OSError) as error:
        raise unreadable(path, error) from error
