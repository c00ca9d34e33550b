"""The components of a run and its lifecycle, however it is started."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger

from sinks.callbacks import (
    Divergence,
    HealthNotes,
    LineProgress,
    Preemption,
    RandomState,
    RunCheckpoints,
    RunRecorder,
    SinkStatistics,
    Stability,
    Throughput,
)
from sinks.callbacks.divergence import Diverged
from sinks.callbacks.preemption import TimeUp
from sinks.data.module import TokenData
from sinks.described import section_of
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.parallel.checkpoint_io import RunCheckpointIO
from sinks.parallel.ranks import data_ranks
from sinks.record import RunFolder, board
from sinks.record.fingerprint import identity, reject_another_run
from sinks.record.lock import run_lock
from sinks.record.logger import EventLogger, RunFolderLogger
from sinks.record.provenance import provenance
from sinks.runs.failures import failures_reported
from sinks.runs.start import start_of
from sinks.runs.steps import validation_in_steps
from sinks.runs.trainer_options import check_trainer_options

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # Lightning's would shuffle; the suite has its own order of data
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,  # training is one endless stream: validation is counted in steps
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
# Callbacks of every run: those with options, by the section that holds them, and those without.
SECTIONS: dict[str, Callable[..., Callback]] = {
    "run": RunRecorder,
    "statistics": SinkStatistics,
    "progress": LineProgress,
    "notes": HealthNotes,
}
# What decides where an early stopping callback ends a run.
STOPPING_OPTIONS = (
    "monitor", "mode", "patience", "min_delta", "check_finite", "stopping_threshold", "divergence_threshold",
)  # fmt: skip
ALWAYS: tuple[Callable[[], Callback], ...] = (Stability, Throughput, Divergence, RandomState)


def around(
    folder: RunFolder, options: Mapping[str, Any], checkpoints: Callback | None, fitting: bool = True
) -> dict[str, Any]:
    """A trainer's loggers, callbacks and plugins around a run folder, in addition to those in its options, and its
    options that count in optimizer steps.

    Args:
        folder: of the run.
        options: of the trainer.
        checkpoints: saves the run's state, unless the options name another checkpoint callback.
        fitting: whether the trainer trains, or only measures.
    """
    if str(options.get("precision")) in ("16", "16-mixed", "16-true"):
        raise UserError(
            f"trainer.precision is {options['precision']}, but residual sinks exceed float16's largest number, 65504: "
            "give bf16-mixed"
        )
    check_trainer_options(options)
    directory, logger = str(folder.path), options.get("logger")
    callbacks = _listed(options.get("callbacks"))
    found: dict[str, Any] = validation_in_steps(options, callbacks) if fitting else {}
    if not fitting:
        found["logger"] = False
    elif logger in (None, True):
        # TensorBoard may be missing on a bare GPU machine.
        events = [EventLogger(directory)] if find_spec("tensorboard") else []
        found["logger"] = [*events, RunFolderLogger(directory)]
    elif logger is not False:
        found["logger"] = [*_listed(logger), RunFolderLogger(directory)]
    saved = any(isinstance(c, Checkpoint) for c in callbacks) or options.get("enable_checkpointing") is False
    found["callbacks"] = [*callbacks, *([checkpoints] if fitting and checkpoints is not None and not saved else [])]
    found["callbacks"].append(Preemption(options.get("max_time")))
    found["max_time"] = None  # Lightning's own limit validates out of turn, and counts the time before a resume
    plugins = _listed(options.get("plugins"))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        found["plugins"] = [*plugins, RunCheckpointIO()]
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def train(
    model: CausalLM,
    data: TokenData,
    folder: str | os.PathLike[str],
    *,
    max_steps: int,
    seed: int = 0,
    variant: str | None = None,
    trainer: Mapping[str, Any] | None = None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any] | None:
    """Train a model into a run folder, as `sinks fit` does: resume what was interrupted, return what is finished.

    Args:
        model: not trained before.
        data: its rows.
        folder: of the run.
        max_steps: optimizer steps.
        seed: of initialization.
        variant: name of the run in reports; the family's name if not given.
        trainer: options of Lightning's trainer, e.g. `{"accelerator": "cpu", "val_check_interval": 50}`.
        sections: options of `statistics`, `progress`, `notes` and `checkpoints`, as in a configuration.
        callbacks: in addition to the suite's own.

    Returns:
        The numbers of summary.json; None if the run has not ended, e.g. after `max_time`: call again to resume it.

    Raises:
        UserError: if the folder holds another run, or something about the model, the data or the options is wrong.
    """
    options = {"max_steps": max_steps, "val_check_interval": max(1, min(100, max_steps))} | dict(trainer or {})
    given = {"run": {"dir": str(folder), "variant": variant}} | dict(sections or {})
    sections_of = {"model": section_of(model, "vocab_size", "context_length"), "data": section_of(data)}
    config = {"seed_everything": seed} | sections_of | {"trainer": {k: _written(v) for k, v in options.items()}}
    own = [make(**given.get(name, {})) for name, make in SECTIONS.items()]
    checkpoints = RunCheckpoints(**given.get("checkpoints", {}))
    lightning.seed_everything(seed, verbose=False)
    wrapped = around(RunFolder(folder), options, checkpoints)
    wrapped["callbacks"] += [*callbacks, *own, *(make() for make in ALWAYS)]
    built = lightning.Trainer(**TRAINER_DEFAULTS | options | wrapped)
    return run(built, model, data, config, yaml.safe_dump(config, sort_keys=False))


def _written(value: Any) -> Any:
    """An option of the trainer as config.yaml holds it: an object by its class."""
    plain = value is None or isinstance(value, (bool, int, float, str, list, dict))
    return value if plain else f"{type(value).__module__}.{type(value).__qualname__}"


def run(
    trainer: lightning.Trainer,
    model: CausalLM,
    data: TokenData,
    config: Mapping[str, Any],
    config_text: str,
    ckpt_path: str | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """The lifecycle of a run: validate, lock the folder, record the provenance, train, validate, summarize.

    Args:
        trainer: with the suite's callbacks.
        model: of the run.
        data: its rows.
        config: resolved configuration.
        config_text: the same as it is written to config.yaml.
        ckpt_path: checkpoint to start from; the folder's last one if not given.
        options: of `Trainer.fit`.

    Returns:
        The numbers of summary.json, on every process; None if the sitting ended before the run.

    Raises:
        UserError: as `train`.
    """
    recorder = recorder_of(trainer)
    folder, writes = recorder.folder, trainer.global_rank == 0
    if ckpt_path is not None and folder.last_checkpoint is None and not Path(ckpt_path).exists():
        raise UserError(f"there is no checkpoint {ckpt_path}: leave --ckpt_path out to start or resume the run")
    data.prepare_data()
    for read in (data.train_set, data.validation_set):
        read()  # an error in the data is raised before anything is written
    identify(trainer, model, data, config)
    # Every rank takes the same branch: one that continued alone would wait for the others until a timeout.
    reject_another_run(folder, recorder.identity)
    if folder.finished:
        if writes:
            print(f"{folder.path} is finished: nothing to do (choose another --run.dir to run it again)")
        return folder.summary()
    interval = next((c.interval for c in trainer.callbacks if isinstance(c, RunCheckpoints)), None)
    start = start_of(folder, ckpt_path, interval)
    origin = {"began_from": start.began_from}
    if model.start_from is not None:
        origin["started_from"] = folder.provenance().get("started_from") if start.checkpoint else model.check_start()
    lock = run_lock(folder.path) if writes else nullcontext()
    with failures_reported(folder, trainer), lock:
        if writes:
            folder.remove_leftovers()
            if start.line is not None:
                print(start.line)
            folder.write_provenance(provenance() | recorder.identity | origin)
            folder.write_config(config_text)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    board.describe(logger.experiment, config, config_text)
        return _train(trainer, model, data, str(start.checkpoint) if start.checkpoint else None, **options)


def _train(
    trainer: lightning.Trainer, model: CausalLM, data: TokenData, ckpt_path: str | None, **options: Any
) -> dict[str, Any] | None:
    """Train from a checkpoint or step 0, validate at the end, and write the summary if that is the end of the run."""
    recorder = recorder_of(trainer)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, **options)
    except Diverged:
        recorder.diverged = True
    except TimeUp:
        return None
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # which Lightning turns into exit code 1
            raise KeyboardInterrupt from None
        raise
    else:
        if not has_ended(trainer):
            if trainer.global_rank == 0:
                print(f"stopped at step {trainer.global_step} of {trainer.max_steps}: the same command resumes")
            return None
        if recorder.validated_at != trainer.global_step:
            trainer.validate(model, datamodule=data, verbose=False)
    for logger in trainer.loggers:
        logger.finalize("success")
    summary = recorder.finish(trainer, model)
    told = any(isinstance(callback, LineProgress) and callback.enabled for callback in trainer.callbacks)
    if trainer.global_rank == 0 and told:
        print(f"finished: {recorder.folder.path}; next: sinks report {shlex.quote(str(recorder.folder.path))}")
    return summary


def has_ended(trainer: lightning.Trainer) -> bool:
    """Whether a run is over, not only this sitting: at the last step, or where its own rule has stopped it."""
    return trainer.global_step >= trainer.max_steps or any(
        rule.stopping_reason != EarlyStoppingReason.NOT_STOPPED for rule in early_stopping(trainer)
    )


def early_stopping(trainer: lightning.Trainer) -> list[EarlyStopping]:
    """The rules by which a run may end before its last step."""
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]


def recorder_of(trainer: lightning.Trainer) -> RunRecorder:
    """The callback that keeps the run folder."""
    return next(c for c in trainer.callbacks if isinstance(c, RunRecorder))


def identify(trainer: lightning.Trainer, model: CausalLM, data: TokenData, config: Mapping[str, Any]) -> None:
    """Set the recorder's identity of the run; the data must be prepared."""
    recorder = recorder_of(trainer)
    rows = data.batch_size * data_ranks(trainer)[1] * trainer.accumulate_grad_batches
    rules = [{name: getattr(rule, name) for name in STOPPING_OPTIONS} for rule in early_stopping(trainer)]
    variant = recorder.variant or type(model).__name__
    recorder.identity = identity(config, variant, data.identity(), rows, rules)
