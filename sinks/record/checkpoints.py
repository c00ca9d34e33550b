"""Checkpoints in a run folder: their names, and whether one is complete, told without reading its tensors."""

import pickletools
import re
import zipfile
from pathlib import Path

LAST = "last.ckpt"
# A folder of shards: what is where, and all that is not a tensor of the model or an optimizer.
INDEX = ".metadata"
REST = "meta.pt"
SHARD = ".distcp"


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after an optimizer step."""
    return f"step{step:08d}.ckpt"


def checkpoint_step(path: Path) -> int | None:
    """The optimizer step that a name states; None for other names."""
    found = re.fullmatch(r"step(\d{8,})\.ckpt", path.name)
    return int(found[1]) if found else None


def is_complete(path: Path) -> bool:
    """Whether a file, or every file of a folder of shards, is there to its end, as after an interrupted copy it is not.

    The content is not verified: a damaged checkpoint is rejected when it is read.
    """
    if not path.is_dir():
        return path.is_file() and zipfile.is_zipfile(path)  # whose directory is at the end
    parts = (path / INDEX, path / REST)
    return all(part.is_file() for part in parts) and all((path / name).is_file() for name in _shards(path / INDEX))


def _shards(index: Path) -> set[str]:
    """Names of the shards in a pickled index, which is scanned, not run."""
    try:
        values = [value for _, value, _ in pickletools.genops(index.read_bytes())]
    except ValueError:
        return {SHARD}  # no file has this name: what cannot be scanned is not complete
    return {value for value in values if isinstance(value, str) and value.endswith(SHARD)}
