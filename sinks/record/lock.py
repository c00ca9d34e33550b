"""One run folder has one writer at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinks.errors import UserError
from sinks.record.folder import write_atomically

LOCK_FILE = ".lock"
OWNER_FILE = ".lock.holder"


@contextmanager
def run_lock(folder: Path, option: str = "--run.dir") -> Iterator[None]:
    """Lock a run folder, created if needed; the system releases the lock when the process ends, however it ends.

    Args:
        folder: of the run.
        option: of the command, by which another folder is chosen.

    Raises:
        UserError: if another process holds the lock, naming it; or if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    owner = folder / OWNER_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        by = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise UserError(
            f"{folder} is being written by {by}: wait until it is done, stop it, or choose another {option}"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another {option}") from None
    try:
        # Not in the lock file: opening it may truncate it.
        write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
