"""Every private name of Lightning that the suite uses (2.6.6), each with the reason; a test greps for others."""

import signal
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


def validation_follows(trainer: lightning.Trainer) -> bool:
    """Whether this training step is followed by a validation; Lightning has no public way to ask."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def dump_checkpoint(trainer: lightning.Trainer) -> dict[str, Any]:
    """The full state of a run, a shard on each rank of a sharded strategy; `save_checkpoint` also writes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def resume_between_steps(checkpoint: dict[str, Any], accumulated: int) -> None:
    """Count a checkpoint's micro-batches anew from its optimizer steps: it may have been taken within a step, or with
    another number of micro-batches in one, and Lightning would cut the first step short."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        surplus = counts["ready"] - checkpoint["global_step"] * accumulated
        counts.update({name: count - surplus for name, count in counts.items()})


def save_now(callback: ModelCheckpoint, trainer: lightning.Trainer) -> None:
    """Make a user's own checkpoint callback save now regardless of its interval, last.ckpt too."""
    candidates = callback._monitor_candidates(trainer)
    callback._save_topk_checkpoint(trainer, candidates)
    callback._save_last_checkpoint(trainer, candidates)


def leave_signals_alone(trainer: lightning.Trainer) -> None:
    """Lightning's handlers run a collective inside a signal handler and write SLURM checkpoints to other places; and
    before every batch Lightning waits for a broadcast from rank 0 on whether a signal came."""
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def kill_launched(trainer: lightning.Trainer) -> None:
    """End the processes that Lightning itself started; torchrun and srun end their own."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGKILL)


def parser_of(cli: Any) -> Any:
    """The parser of a command line's subcommand, or of all of it where it has none."""
    return cli._parser(cli.subcommand)


def subparser_of(cli: Any, arguments: list[str], parser: Any) -> Any:
    """The parser of the subcommand that arguments begin with; `parser` where there are no subcommands."""
    return getattr(cli, "_subcommand_parsers", {}).get(arguments[0], parser) if arguments else parser


class NoCheckpointOptions:
    """A command line with options from config.yaml: Lightning would load a full checkpoint for them."""

    def _parse_ckpt_path(self) -> None:
        """Read nothing."""


class MeshStrategy(ModelParallelStrategy):
    """Lightning's strategy of a device mesh of two dimensions; a subclass gives data-parallel size and mesh."""

    def data_parallel_size(self) -> int:
        """Processes that read different data."""
        raise NotImplementedError

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.data_parallel_size()

    def use_mesh(self, mesh: Any) -> None:
        """Take another mesh than the one of two dimensions."""
        self._device_mesh = mesh
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = mesh

    @property
    def saves_shards(self) -> bool:
        """Whether each process writes its own shard of a checkpoint."""
        return self._save_distributed_checkpoint
