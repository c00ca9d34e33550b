"""The files of a model's folder: its safetensors, in one file or in shards, and its JSON.

A pickle is never read: it can run code.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sinks.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that an index names.

    Raises:
        UserError: if there are none, or some are missing.
    """
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX, "").get("weight_map")
        shards = sorted(set(named.values())) if isinstance(named, dict) else []
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing or not shards:
            raise UserError(
                f"{folder} lacks {', '.join(missing) or 'weights'} of the {len(shards)} files in {INDEX}: copy or "
                "download them again"
            )
        return [folder / shard for shard in shards]
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f", only {pickles[0]}, a pickle, which can run code" if pickles else ""
        raise UserError(f"{folder} has no {WEIGHTS}{found}: convert the weights to safetensors")
    return [folder / WEIGHTS]


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: if the file is missing or holds none.
    """
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}: {remedy}")
    with reading(str(file)):
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    return content


@contextmanager
def reading(what: str) -> Iterator[None]:
    """A failure inside is a user error: what transformers raises for files it cannot use is of no one class."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be read ({one_line(error)}): restore it, or download it again") from error


def one_line(error: Exception) -> str:
    """What an error says, on one line of a message."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
