"""Where a run starts: at step 0, from its own checkpoint, or from another run's; never over what a folder holds."""

from pathlib import Path
from typing import NamedTuple

from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.checkpoints import LAST, is_complete


class Start(NamedTuple):
    """Where a run starts.

    Args:
        checkpoint: from which; None: at step 0.
        began_from: the checkpoint that the run was first started from, given by the user.
        line: for the user; None if there is nothing to say.
    """

    checkpoint: Path | None = None
    began_from: str | None = None
    line: str | None = None


def start_of(folder: RunFolder, given: str | None, interval: int | None) -> Start:
    """Where a run in a folder starts.

    Args:
        folder: of the run, which is of the same configuration if it has begun.
        given: checkpoint to start from; one that has begun from it resumes from its own.
        interval: optimizer steps between checkpoints; None if none are saved.

    Raises:
        UserError: if the run would start again before results that the folder holds.
    """
    own, files = folder.last_checkpoint, folder.checkpoint_files()
    incomplete = [path.name for path in files if not is_complete(path)]
    if given is not None and folder.begun and not _continues(folder, Path(given)):
        raise UserError(
            f"{folder.path} holds a run, which starting from {given} would cut back or mix with another: choose "
            "another --run.dir, or leave --ckpt_path out to resume the run"
        )
    if own is not None:
        notes = [f"{name} is incomplete" for name in incomplete]
        notes += [f"there is no {LAST}"] if folder.last_link not in files else []
        note = f" ({', '.join(notes)})" if notes else ""
        return Start(own, folder.provenance().get("began_from"), f"resuming {folder.path} from {own.name}{note}")
    if given is not None:
        return Start(Path(given), str(Path(given).resolve()), f"starting {folder.path} from {given}")
    if files:
        names = ", ".join(path.name for path in files)
        raise UserError(
            f"{folder.path} has no complete checkpoint by the name of {LAST} or step*.ckpt, only {names}: restore one, "
            "name one as --ckpt_path, or choose another --run.dir to start again"
        )
    if not folder.begun:
        return Start()
    last = max((line["step"] for line in folder.metrics()), default=0)
    if interval is not None and last > interval:
        raise UserError(
            f"{folder.path} has metrics up to step {last}, but no checkpoint to resume from, although one is saved "
            f"every {interval} steps: restore checkpoints/, or choose another --run.dir to start again"
        )
    return Start(line=f"starting {folder.path} again: it stopped at step {last} without a checkpoint")


def _continues(folder: RunFolder, given: Path) -> bool:
    """Whether to start a run from a checkpoint loses nothing of it: it began there, or goes on from its last one."""
    own, began = folder.last_checkpoint, folder.provenance().get("began_from")
    if own is None and given.parent.resolve() == folder.checkpoints.resolve():
        return True
    return str(given.resolve()) in (began, str(own.resolve()) if own else None)
