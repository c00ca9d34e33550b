"""SIGTERM, SIGUSR1 and `trainer.max_time` end a sitting after a step, with a checkpoint; the same command resumes."""

import os
import signal
import subprocess
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from sinks.callbacks.checkpoints import RunCheckpoints
from sinks.callbacks.recorder import RunRecorder
from sinks.errors import UserError
from sinks.lightning_private import leave_signals_alone, save_now
from sinks.parallel.peer_failure import peer_failure

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
TIME_UP = "trainer.max_time"
REASONS: tuple[signal.Signals | str, ...] = (*SIGNALS, TIME_UP)
# Launchers forward signals that their processes may have received already.
REPEATED_WITHIN_S = 2.0


class Stopped(SystemExit):
    """A signal ended the run; the exit code is 128 + its number, as shells count."""


class TimeUp(Exception):
    """A sitting has trained for `trainer.max_time`."""


class Preemption(Callback):
    """Records a signal when it arrives, and acts between steps: checkpoint, one line, exit code 128 + its number.

    A process that trains alone acts before its next optimizer step. Ranks get the signal at different times, and must
    act at the same step without asking each other at every one: they agree when the recorder reduces the loss, every
    `log_every_n_steps` steps. Under SLURM, SIGUSR1 also puts the job back into the queue. A second signal ends the
    process at once. Outside training, the previous handlers apply.

    Args:
        max_time: a sitting's training time, after which it ends in the same way but raises `TimeUp`; as Lightning's.
    """

    def __init__(self, max_time: str | timedelta | dict[str, int] | None = None) -> None:
        try:
            self.clock = Timer(max_time)
        except MisconfigurationException:
            raise UserError(f"trainer.max_time is {max_time!r}, but must be a time: give DD:HH:MM:SS") from None
        left = self.clock.time_remaining()
        if left is not None and left <= 0:
            raise UserError(f"trainer.max_time is {max_time!r}, but must be longer: give DD:HH:MM:SS, or leave it out")
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._recorder: RunRecorder | None = None
        self._previous: dict[signal.Signals, Any] = {}

    # -- receiving ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        leave_signals_alone(trainer)
        self._recorder = next(c for c in trainer.callbacks if isinstance(c, RunRecorder))
        self._recorder.rank_flags = self._recorder.mean_flags = [0.0 for _ in REASONS]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._on_signal) for signum in SIGNALS}
            self._previous[signal.SIGINT] = signal.getsignal(signal.SIGINT)  # ignored by Lightning after Ctrl-C

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        assert self._recorder is not None
        if self._received is None:
            self._received, self._received_at = signal.Signals(signum), time.monotonic()
            self._recorder.rank_flags = [float(signum == known) for known in REASONS]
        elif time.monotonic() - self._received_at > REPEATED_WITHIN_S:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # After a peer failure, a launcher sends SIGTERM to this rank, which must still report the failure.
        if peer_failure(exception) is None:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    # -- acting -------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the step before: its validation, if one was due, is part of it.
        reason = self._own_reason() if trainer.world_size == 1 else self._agreed()
        if reason is None or batch_idx % trainer.accumulate_grad_batches:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for count in (progress.total, progress.current):
            count.ready -= 1  # this batch is read again after the resume
        saved = "checkpoint saved: the same command resumes"
        if trainer.global_step == 0:
            saved = "before there was anything to save"
        elif not save_checkpoint(trainer):
            saved = "nothing saved, because the run keeps no checkpoints"
        if trainer.is_global_zero:
            name = reason if isinstance(reason, str) else reason.name
            print(f"stopped by {name} at step {trainer.global_step}, {saved}", flush=True)
            if reason == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
                requeue()
        # A launcher ends the other ranks when one exits: not before the job is in the queue again.
        trainer.strategy.barrier("preemption")
        if isinstance(reason, str):
            raise TimeUp
        raise Stopped(128 + reason)

    def _own_reason(self) -> signal.Signals | str | None:
        """Why this process would end the sitting, if it would."""
        left = self.clock.time_remaining()
        return self._received or (TIME_UP if left is not None and left <= 0 else None)

    def _agreed(self) -> signal.Signals | str | None:
        """The first reason that any rank had at the last log; this rank's is passed on with the next one."""
        assert self._recorder is not None
        own = self._own_reason()
        self._recorder.rank_flags = [float(own == known) for known in REASONS]
        flags = zip(REASONS, self._recorder.mean_flags, strict=True)
        return next((reason for reason, mean in flags if mean > 0), None)


def save_checkpoint(trainer: Trainer) -> bool:
    """Save with every checkpoint callback now, last.ckpt too, whatever the interval; whether there was one."""
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    for callback in callbacks:
        if isinstance(callback, RunCheckpoints):
            callback.save(trainer)
        else:
            save_now(callback, trainer)
    return bool(callbacks)


def requeue() -> None:
    """Put this SLURM job, or this task of a job array, back into the queue; prints a line if that fails."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    result = f"cannot be requeued ({problem}): submit it again, it resumes" if problem else "is in the queue again"
    print(f"SLURM job {job} {result}", flush=True)
