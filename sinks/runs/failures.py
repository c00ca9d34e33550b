"""Failures of a run reported in one line."""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import lightning

from sinks.errors import UserError
from sinks.lightning_private import kill_launched
from sinks.parallel.peer_failure import peer_failure
from sinks.record import RunFolder
from sinks.record.atomic import disk_full


@contextmanager
def failures_reported(folder: RunFolder, trainer: lightning.Trainer) -> Iterator[None]:
    """Turn what a full disk or a peer failure raises into one line; end the other processes after a peer failure.

    Raises:
        UserError: naming the unwritable file or the cause of the peer failure, and where the same command resumes.
    """
    try:
        yield
    except Exception as error:
        full, reason = disk_full(error), peer_failure(error)
        if full is not None:
            problem = f"{full.filename or folder.path} could not be written ({full.strerror}): free space, then the"
        elif reason is not None:
            kill_launched(trainer)
            rank = trainer.global_rank
            problem = f"rank {rank} reports a peer failure ({reason}): see the failed rank's own message; the"
        else:
            raise
        last = folder.last_checkpoint
        follows = f"resumes from {last.name}" if last else "starts again"
        raise UserError(f"{problem} same command {follows}") from error


def print_unless_disk_full(failure: threading.ExceptHookArgs) -> None:
    """Print what ended a thread, except a full disk, which TensorBoard's writer raises again in the main thread."""
    if disk_full(failure.exc_value) is None:
        threading.__excepthook__(failure)


def _raised_by(error: BaseException) -> str:
    """The package of the innermost frame."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def users_mistake(error: BaseException | None) -> UserError | None:
    """The UserError that an exception was raised from, if any; in one line, where a loader's worker raised it.

    What `sink_kernels` rejects is one too: a normalizer of one's own, or an option of one, cannot be run.
    """
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, ValueError) and _raised_by(error) == "sink_kernels":
            return UserError(str(error))
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    # A worker's traceback precedes the message.
    return UserError(str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].strip())
