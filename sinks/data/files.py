"""Files of a corpus: found in a fixed order through links, and opened with errors that name them."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinks.errors import UserError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """An OSError inside is a user error that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): make it readable, or leave it out"
        ) from None


def walk(root: Path, without: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files below a folder in a fixed order, a folder's own before those of its subfolders; hidden ones left out.

    Links are followed, and no folder is entered twice, so that a link to a folder above ends.

    Args:
        root: the folder.
        without: names of files and folders to leave out.
    """
    entered: set[str] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        place = os.path.realpath(folder)
        if place in entered:
            continue
        entered.add(place)
        with reading(folder), os.scandir(folder) as entries:
            visible = sorted((entry.name, _is_folder(entry)) for entry in entries if entry.name[0] != ".")
        names = [(name, is_folder) for name, is_folder in visible if name not in without]
        yield from (folder / name for name, is_folder in names if not is_folder)
        pending += reversed([folder / name for name, is_folder in names if is_folder])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises for a link to itself; os.path.isdir asks the disk again.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def check_link(path: Path) -> None:
    """Reject a link to nothing, whatever it once was a link to."""
    with reading(path):
        dangling = path.is_symlink() and not path.exists()
    if dangling:
        raise UserError(f"{path} is a link to {os.readlink(path)}, which cannot be found: mend the link or remove it")


def file_size(path: Path) -> int:
    """Bytes of a regular file; a pipe, socket or device is rejected: it can be read only once, or never ends."""
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a pipe, socket or device, but a regular file is needed: copy it, or leave it out")
    return status.st_size
