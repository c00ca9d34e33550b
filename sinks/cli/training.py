"""`sinks fit` and `sinks validate`: LightningCLI over the families and data modules, around one run folder."""

import logging
import os
import re
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

import sinks.data.backcopy
import sinks.data.text
import sinks.families  # noqa: F401  (its classes resolve by their short names)
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
from sinks.cli.parser import OneLineErrors, one_line, refuse_unknown_sections
from sinks.cli.told import full_disk_told, lost_rank_told, print_unless_disk_full, users_mistake
from sinks.data.module import TokenData
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.parallel.checkpoint_io import RunCheckpointIO
from sinks.parallel.ranks import data_ranks
from sinks.record import RunFolder
from sinks.record.lock import sole_writer
from sinks.record.logger import EventLogger, RunFolderLogger
from sinks.record.provenance import config_fingerprint, provenance

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # Lightning's would shuffle; the suite has its own order of data
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,  # training is one endless stream: validation is counted in steps
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

HOW_ROWS_ARE_READ = ("batch_size", "validation_batch_size", "num_workers")


class TrainingParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with one-line errors, which for an unknown class name the known ones."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r'Parser key "(model|data)".*Expected a dot import path string: (\S+)', message, re.DOTALL)
        if unknown:
            section, name = unknown.groups()
            base: type = {"model": CausalLM, "data": TokenData}[section]
            known = sorted(c.__name__ for c in {base, *subclasses(base)} if c is not TokenData)
            message = f"{section} {name!r} is not known: choose one of {', '.join(known)}, or give an import path"
        super().error(message, ex)


def subclasses(base: type) -> set[type]:
    """All subclasses that are imported, however deep."""
    children: list[type] = base.__subclasses__()
    return set(children).union(*(subclasses(child) for child in children))


class WriteConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder."""

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        recorder = next(c for c in trainer.callbacks if isinstance(c, RunRecorder))
        config = self.config.clone()
        for name, value in pl_module.resolved_options().items():
            config.model.init_args[name] = value
        text = self.parser.dump(config, skip_unset=False, skip_link_targets=True)
        recorder.folder.write_config(text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")


class TrainingCLI(LightningCLI):
    """Adds the run folder, the statistics and the links between data and model to Lightning's command line."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        offered = LightningCLI.subcommands()
        return {name: offered[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(RunRecorder, "run")
        parser.add_lightning_class_args(SinkStatistics, "statistics")
        parser.add_lightning_class_args(LineProgress, "progress")
        parser.add_lightning_class_args(HealthNotes, "notes")
        parser.add_class_arguments(RunCheckpoints, "checkpoints")
        for name in ("vocab_size", "context_length"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        refuse_unknown_sections(args, getattr(self, "_subcommand_parsers", {}).get(args[0], parser) if args else parser)
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read the whole checkpoint for options, which stand in config.yaml."""

    # -- the trainer around the run folder ----------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self._get(self.config_init, "trainer")
        directory = self.recorder.folder.path
        fitting = self.subcommand != "validate"
        if fitting and config.max_steps < 1:
            raise UserError(
                f"trainer.max_steps is {config.max_steps}, but training is an endless stream: give --trainer.max_steps"
            )
        if str(config.precision) in ("16", "16-mixed", "16-true"):
            raise UserError(
                f"trainer.precision is {config.precision}, but residual sinks exceed float16's largest number, 65504: "
                "give bf16-mixed"
            )
        if not fitting:
            kwargs["logger"] = False
        elif config.logger in (None, True):
            kwargs["logger"] = [EventLogger(str(directory)), RunFolderLogger(str(directory))]
        elif config.logger is not False:
            others = config.logger if isinstance(config.logger, list) else [config.logger]
            kwargs["logger"] = [*others, RunFolderLogger(str(directory))]
        callbacks = config.callbacks if isinstance(config.callbacks, list) else [c for c in [config.callbacks] if c]
        own_checkpoint = any(isinstance(c, Checkpoint) for c in callbacks)
        if fitting and config.enable_checkpointing is not False and not own_checkpoint:
            callbacks = [*callbacks, self._get(self.config_init, "checkpoints")]
        kwargs["callbacks"] = callbacks
        plugins = config.plugins if isinstance(config.plugins, list) else [p for p in [config.plugins] if p]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, RunCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError) as error:
            raise UserError(f"the trainer cannot be built: {one_line(str(error))}") from None

    @property
    def recorder(self) -> RunRecorder:
        return self._get(self.config_init, "run")

    def identity(self) -> dict[str, Any]:
        """What names the run, and tells it from others."""
        config = yaml.safe_load(self._parser(self.subcommand).dump(self._get_config(), skip_unset=False))
        # How many processes share a step's rows, and how a block is run, may change when a run is resumed.
        rows = self.datamodule.batch_size * data_ranks(self.trainer)[1] * self.trainer.accumulate_grad_batches
        data = {k: v for k, v in config["data"]["init_args"].items() if k not in HOW_ROWS_ARE_READ}
        config["data"]["init_args"] = data | {"rows_per_step": rows}
        config["model"]["init_args"].pop("execution", None)
        # Without the seeds, and without what is resolved from another run, which differs from seed to seed.
        options = {k: v for k, v in config["data"]["init_args"].items() if k != "seed"}
        seedless = config | {"seed_everything": None, "data": config["data"] | {"init_args": options}}
        resolved = self.model.resolved_options()
        unresolved = config["model"]["init_args"] | dict.fromkeys(resolved)
        seedless["model"] = config["model"] | {"init_args": unresolved}
        config["model"]["init_args"] = config["model"]["init_args"] | resolved
        data_fingerprint = self.datamodule.fingerprint()
        return {
            "variant": self.recorder.variant or type(self.model).__name__,
            "seed": config["seed_everything"],
            "config_fingerprint": config_fingerprint(config, data_fingerprint),
            "variant_fingerprint": config_fingerprint(seedless, ""),
            "data_fingerprint": data_fingerprint,
        }

    def _get_config(self) -> Namespace:
        return self.config[self.subcommand]

    # -- the commands -------------------------------------------------------------------------------------------

    def fit(self, model: CausalLM, datamodule: TokenData, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train into the run folder: start, resume what was broken off, or say that it is finished."""
        folder, writes = self.recorder.folder, self.trainer.global_rank == 0
        if ckpt_path is not None and not Path(ckpt_path).exists():
            raise UserError(f"there is no checkpoint {ckpt_path}: leave --ckpt_path out to start or resume the run")
        datamodule.prepare_data()
        for read in (datamodule.train_set, datamodule.validation_set):
            read()  # what is wrong with them is told before anything is written
        identity = self.recorder.identity = self.identity()
        # Every rank decides alike: one that went on alone would wait for the others until a timeout.
        refuse_another_run(folder, identity)
        if folder.finished:
            if writes:
                print(f"{folder.path} is finished: nothing to do (choose another --run.dir to run it again)")
            return
        lock = sole_writer(folder.path) if writes else nullcontext()
        with lost_rank_told(folder, self.trainer), full_disk_told(folder), lock:
            if writes:
                folder.remove_leftovers()
                folder.write_provenance(provenance() | identity)
            self.train(model, datamodule, ckpt_path, **kwargs)

    def train(self, model: CausalLM, datamodule: TokenData, ckpt_path: str | None, **kwargs: Any) -> None:
        """Start or resume, validate at the end, and write the summary."""
        folder = self.recorder.folder
        if ckpt_path is None and folder.last_checkpoint.exists():
            if self.trainer.global_rank == 0:
                print(f"resuming {folder.path} from {folder.last_checkpoint.name}")
            ckpt_path = str(folder.last_checkpoint)
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **kwargs)
        except Diverged:
            self.recorder.diverged = True
        except SystemExit as ended:
            if isinstance(ended.__context__, KeyboardInterrupt):  # which Lightning turns into exit code 1
                raise KeyboardInterrupt from None
            raise
        else:
            if self.recorder.validated_at != self.trainer.global_step:
                self.trainer.validate(model, datamodule=datamodule, verbose=False)
        self.recorder.finish(self.trainer, model)

    def validate(self, model: CausalLM, datamodule: TokenData, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure a checkpoint (the run folder's last one if none is given) and write validation/<checkpoint>.json."""
        folder = self.recorder.folder
        path = Path(ckpt_path) if ckpt_path else folder.last_checkpoint
        if not path.exists():
            raise UserError(f"there is no checkpoint {path}: give --ckpt_path, or --run.dir of a finished run")
        datamodule.prepare_data()
        self.recorder.identity = self.identity()
        self.trainer.validate(model, datamodule=datamodule, ckpt_path=str(path), **kwargs)
        statistics = next(c.latest for c in self.trainer.callbacks if isinstance(c, SinkStatistics))
        loss = float(self.trainer.callback_metrics["validation/loss"])
        result = {"checkpoint": str(path), "validation/loss": loss} | statistics | provenance() | self.recorder.identity
        if self.trainer.is_global_zero:
            print(f"validation/loss {loss:.6f}  ->  {folder.write_validation(path.stem, result)}")


def refuse_another_run(folder: RunFolder, identity: dict[str, Any]) -> None:
    """One folder holds one run.

    Raises:
        UserError: if the folder holds a run of another configuration.
    """
    try:
        existing = folder.provenance()["config_fingerprint"]
    except UserError:
        return
    if existing != identity["config_fingerprint"]:
        raise UserError(
            f"{folder.path} holds a run of another configuration (fingerprint {existing}, "
            f"not {identity['config_fingerprint']}): choose another --run.dir or remove the folder"
        )


def quieten() -> None:
    """Silence advertisements and what is deliberate here; warnings about the user's run stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Gathering over two mesh dimensions takes two collectives; it is done for checkpoints and the gradient norm only.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*args parameter is intended to run from within Python.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # raised by Lightning's own calls
    threading.excepthook = print_unless_disk_full


def main(command: str, arguments: list[str]) -> None:
    """Run `fit` or `validate`."""
    command_line([command, *arguments])


def command_line(arguments: list[str], run: bool = True, cli: type[TrainingCLI] = TrainingCLI) -> TrainingCLI:
    """Parse and run; with `run=False` (and no command among the arguments) only build trainer, model and data.

    Raises:
        UserError: for a mistake in the configuration.
    """
    quieten()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    try:
        return cli(
            CausalLM,
            TokenData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS
            | {"callbacks": [Stability(), Throughput(), Divergence(), Preemption(), RandomState()]},
            seed_everything_default=0,
            parser_class=TrainingParser,
            parser_kwargs={"prog": "sinks", "parser_mode": "omegaconf+", "allow_abbrev": False},
            save_config_callback=WriteConfig,
            save_config_kwargs={"save_to_log_dir": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
            run=run,
        )
    except OmegaConfBaseException as error:
        raise UserError(f"{one_line(str(error))}: check what stands between ${{ and }}") from None
    except MisconfigurationException as error:
        raise UserError(one_line(str(error))) from None
    except Exception as error:
        # jsonargparse takes a UserError of a constructor for a failed guess at a type, and raises its own list.
        if (mistake := users_mistake(error)) is None:
            raise
        raise mistake from None
