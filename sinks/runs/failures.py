"""What went wrong, told in one line."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import lightning

from sinks.errors import UserError
from sinks.lightning_private import kill_launched
from sinks.parallel.peer_failure import peer_failure
from sinks.record import RunFolder
from sinks.record.atomic import disk_full


@contextmanager
def peer_failure_reported(folder: RunFolder, trainer: lightning.Trainer) -> Iterator[None]:
    """Turn what a lost process makes the others raise into one line, and leave none of them behind.

    Raises:
        UserError: saying what the communication library said, and where the same command resumes.
    """
    try:
        yield
    except RuntimeError as error:
        said = peer_failure(error)
        if said is None:
            raise
        kill_launched(trainer)
        raise UserError(
            f"rank {trainer.global_rank} lost another rank ({said}): look for that rank's own message; the same "
            f"command {_what_follows(folder)}"
        ) from error


@contextmanager
def full_disk_reported(folder: RunFolder) -> Iterator[None]:
    """Turn what a full disk raises into one line.

    Raises:
        UserError: naming what could not be written, and where the same command resumes.
    """
    try:
        yield
    except Exception as error:
        full = disk_full(error)
        if full is None:
            raise
        raise UserError(
            f"{full.filename or folder.path} could not be written ({full.strerror}): free space, then the same command "
            f"{_what_follows(folder)}"
        ) from error


def _what_follows(folder: RunFolder) -> str:
    last = folder.last_checkpoint
    return f"resumes from {last.resolve().name}" if last.exists() else "starts again"


def print_unless_disk_full(failure: threading.ExceptHookArgs) -> None:
    """What ended a thread, except a full disk: TensorBoard's writer raises that in the main thread again."""
    if disk_full(failure.exc_value) is None:
        threading.__excepthook__(failure)


def users_mistake(error: BaseException | None) -> UserError | None:
    """The UserError that an exception was raised from, if any; in one line, where a loader's worker raised it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    # A worker's traceback stands around the message, which comes last.
    return UserError(str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].strip())
