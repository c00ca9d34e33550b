"""SIGTERM and SIGUSR1 end a run after a step, with a checkpoint from which the same command resumes."""

import os
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from sinks.callbacks.checkpoints import RunCheckpoints
from sinks.callbacks.recorder import RunRecorder
from sinks.lightning_private import leave_signals_alone, save_now
from sinks.parallel.peer_failure import peer_failure

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Launchers forward signals that their processes may have received already.
REPEATED_WITHIN_S = 2.0


class Stopped(SystemExit):
    """A signal ended the run; the exit code is 128 + its number, as shells count."""


class Preemption(Callback):
    """Records a signal when it arrives, and acts between steps: checkpoint, one line, exit code 128 + its number.

    A process that trains alone acts before its next optimizer step. Ranks get the signal at different times, and must
    act at the same step without asking each other at every one: they agree when the recorder reduces the loss, every
    `log_every_n_steps` steps. Under SLURM, SIGUSR1 also puts the job back into the queue. A second signal ends the
    process at once. Outside training, the previous handlers apply.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._recorder: RunRecorder | None = None
        self._previous: dict[signal.Signals, Any] = {}

    # -- receiving ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        leave_signals_alone(trainer)
        self._recorder = next(c for c in trainer.callbacks if isinstance(c, RunRecorder))
        self._recorder.rank_flags = self._recorder.mean_flags = [0.0 for _ in SIGNALS]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._on_signal) for signum in SIGNALS}
            self._previous[signal.SIGINT] = signal.getsignal(signal.SIGINT)  # ignored by Lightning after Ctrl-C

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        assert self._recorder is not None
        if self._received is None:
            self._received, self._received_at = signal.Signals(signum), time.monotonic()
            self._recorder.rank_flags = [float(signum == known) for known in SIGNALS]
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
        signum = self._received if trainer.world_size == 1 else self._agreed()
        if signum is None or batch_idx % trainer.accumulate_grad_batches:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for count in (progress.total, progress.current):
            count.ready -= 1  # this batch is read again after the resume
        saved = "checkpoint saved: the same command resumes"
        if not save_checkpoint(trainer):
            saved = "nothing saved, because the run keeps no checkpoints"
        if trainer.is_global_zero:
            print(f"stopped by {signum.name} at step {trainer.global_step}, {saved}", flush=True)
            if signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
                requeue()
        # A launcher ends the other ranks when one exits: not before the job is in the queue again.
        trainer.strategy.barrier("preemption")
        raise Stopped(128 + signum)

    def _agreed(self) -> signal.Signals | None:
        """The first signal that any rank had received at the last log."""
        assert self._recorder is not None
        flags = zip(SIGNALS, self._recorder.mean_flags, strict=True)
        return next((signum for signum, mean in flags if mean > 0), None)


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
