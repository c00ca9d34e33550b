"""Files and folders written and removed atomically, and the errors of a full disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_path(path: Path) -> Path:
    """The hidden path at which `path` is written, and removed, in the same file system; one for each process."""
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder at a temporary path, renamed to `path` when the block ends; parents are made.

    When the block raises, the temporary file is removed and `path` stays as it was; an OSError names `path`.
    """
    temporary = temporary_path(path)
    try:
        with with_filename(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            replace_atomically(temporary, path)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def replace_atomically(temporary: Path, path: Path) -> None:
    """Rename to `path`; only a file replaces a file atomically, anything else is removed first."""
    if temporary.is_dir() or path.is_dir():
        remove_atomically(path)
    temporary.replace(path)


def remove_atomically(path: Path) -> None:
    """Remove a file or folder, renamed first: a kill leaves nothing that looks complete."""
    if path.is_dir() and not path.is_symlink():
        path = path.rename(temporary_path(path.with_name(f"{path.name}.old")))
    remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed process in a folder; no other process may be writing there."""
    for path in folder.glob(f".*{PARTIAL}"):
        remove(path)


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Add the file name to the error of a failed write, which has only the file descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def disk_full(error: BaseException | None) -> OSError | None:
    """The error of a full disk or an exhausted quota that an exception came from, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        # torch.distributed.checkpoint wraps what its processes raised: process -> (exception, traceback).
        for wrapped, _ in getattr(error, "failures", {}).values():
            if (found := disk_full(wrapped)) is not None:
                return found
        error = error.__cause__ or error.__context__
    return None
