"""Chunks of one split, as litdata's index.json lists them: litdata itself reads a damaged index without an error."""

import json
from pathlib import Path
from typing import Any

from sinks.data.files import reading
from sinks.data.manifest import INDEX_FILE
from sinks.errors import UserError

# Bytes of a token id by litdata's names of data types: numpy's int8 to int64 and uint8 to uint64, then torch's.
ID_BYTES = {
    **{f"no_header_numpy:{number}": size for number, size in enumerate((1, 2, 4, 8) * 2)},
    **{f"no_header_tensor:{number}": size for number, size in enumerate((1, 1, 2, 2, 4, 4, 8, 8), start=11)},
    "no_header_tensor:20": 2,
}


def check_local(folder: Path) -> None:
    """Validate local chunks: litdata waits for missing ones as if they were being downloaded."""
    with reading(folder):
        indexed = (folder / INDEX_FILE).is_file()
    if not indexed:
        raise UserError(
            f"{folder} has no {INDEX_FILE}: give a folder with train/ and val/, each written by litdata.optimize"
        )
    chunks = read_index(folder)["chunks"]
    with reading(folder):
        unlisted = sorted({file.name for file in folder.glob("*.bin")} - {chunk["filename"] for chunk in chunks})
    if unlisted:
        raise UserError(f"{folder / unlisted[0]} is there, but {INDEX_FILE} does not list it: prepare the folder again")
    for chunk in chunks:
        file = folder / chunk["filename"]
        with reading(file):
            size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise UserError(f"{file} is missing, though {INDEX_FILE} lists it: prepare the folder again")
        if size != chunk["chunk_bytes"]:
            raise UserError(f"{file} has {size} bytes, but must have {chunk['chunk_bytes']}: prepare the folder again")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a split, whose chunks are as long as their tokens need.

    Raises:
        UserError: if it cannot be read, or is of other data than tokens.
    """
    file = folder / INDEX_FILE
    try:
        with reading(file):
            index = json.loads(file.read_bytes())
        loader = index["config"]["item_loader"]
        if loader == "TokensLoader":
            _check_chunks(index)
            return index
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}: {error}): prepare the folder again") from None
    raise UserError(
        f"{folder} was written for {loader}, but TokensLoader is needed: give item_loader=TokensLoader() "
        "to litdata.optimize"
    )


def _check_chunks(index: dict[str, Any]) -> None:
    """Raise a ValueError, KeyError or TypeError where litdata would read something else than tokens."""
    config = index["config"]
    if config["data_format"] not in [[name] for name in ID_BYTES]:
        raise ValueError(f"data_format is {config['data_format']}, which is not one of token ids")
    if not index["chunks"]:
        raise ValueError("it lists no chunk")
    known: set[str] = set()
    for chunk in index["chunks"]:
        name, numbers = chunk["filename"], [chunk[key] for key in ("chunk_size", "dim", "chunk_bytes")]
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{name!r} is not the name of a chunk")
        if name in known:
            raise ValueError(f"{name} is listed twice")
        known.add(name)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"sizes of {name} are {numbers}")
        items, tokens, size = numbers
        # A header of 4 bytes for the number of items and for each of their bounds.
        if config["compression"] is None and size != 4 * (items + 2) + tokens * ID_BYTES[config["data_format"][0]]:
            raise ValueError(f"{name} has {size} bytes, which does not fit its {tokens} tokens")
