"""`sinks fit` and `sinks validate`: LightningCLI over the families and data modules, around one run folder."""

import inspect
import logging
import os
import re
import threading
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn, get_args

import lightning
import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sinks.data.backcopy
import sinks.data.text
import sinks.families
import sinks.families.load_balance
import sinks.models.gated_delta_net
import sinks.models.mixture_of_experts  # noqa: F401  (their classes resolve by their short names)
from sinks.callbacks import RunCheckpoints, SinkStatistics
from sinks.cli.explain import explain
from sinks.cli.parser import OneLineErrors, checked_configs, files_first, one_line
from sinks.data.module import TokenData
from sinks.errors import UserError, require
from sinks.families import CausalLM
from sinks.lightning_private import NoCheckpointOptions, parser_of, subparser_of
from sinks.record import RunFolder
from sinks.record.provenance import provenance
from sinks.record.yaml_file import reject_repeated_keys
from sinks.runs.failures import print_unless_disk_full, users_mistake
from sinks.runs.precision import cpu_precision
from sinks.runs.train import ALWAYS, SECTIONS, TRAINER_DEFAULTS, around, identify, recorder_of, run

PARSER_MODE = "omegaconf+"
# Exit code of a sitting that ended before the run, as sysexits.h has it for "try again".
UNFINISHED = 75


class TrainingParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with one-line errors, which name the file and the option, and for a class the known ones."""

    arguments: ClassVar[list[str]] = []  # of the command that is being parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r'Parser key "(model|data)".*Expected a dot import path string: (\S+)', message, re.DOTALL)
        if unknown:
            section, name = unknown.groups()
            base: type = {"model": CausalLM, "data": TokenData}[section]
            known = sorted(c.__name__ for c in {base, *subclasses(base)} if c is not TokenData)
            message = f"{section} {name!r} is not known: choose one of {', '.join(known)}, or give an import path"
        elif self.exit_on_error:
            message = explain(message, self.arguments)
        super().error(message, ex)


def reject_nulls(section: str, given: Any) -> None:
    """jsonargparse takes a null for any option of a class; reject it where the option's type has none.

    Args:
        section: `model` or `data`.
        given: its `class_path` and `init_args`, as parsed.
    """
    options = given.get("init_args") if given else None
    if not isinstance(options, Namespace):  # none, or a section that the command does not parse
        return
    nulls = {name for name, value in vars(options).items() if value is None}
    if not nulls:
        return
    module, _, name = given.class_path.rpartition(".")
    for kind in getattr(import_module(module), name).__mro__[:-1]:
        for name, option in inspect.signature(kind).parameters.items():
            typed = option.default is not option.empty and type(None) not in get_args(option.annotation)
            if name in nulls and typed and option.default is not None:
                raise UserError(f"{section}.{name} is null, but its type has none: leave it out for the default")


def subclasses(base: type) -> set[type]:
    """All imported subclasses, recursively."""
    children: list[type] = base.__subclasses__()
    return set(children).union(*(subclasses(child) for child in children))


class TrainingCLI(NoCheckpointOptions, LightningCLI):
    """Adds the run folder, the statistics and the links between data and model to Lightning's command line."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        offered = LightningCLI.subcommands()
        return {name: offered[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for section, callback in SECTIONS.items():
            parser.add_lightning_class_args(callback, section)
        parser.add_class_arguments(RunCheckpoints, "checkpoints")
        self.link_sections(parser)

    def link_sections(self, parser: LightningArgumentParser) -> None:
        """The model takes vocabulary and context from the data."""
        for name in ("vocab_size", "context_length"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, checked_configs(args, subparser_of(self, args, parser)))
        for section in (self.config, self.config.get(self.config.get("subcommand"))):
            for name in ("model", "data") if section else ():
                reject_nulls(name, section.get(name))
            seed = section and section.get("seed_everything")
            if seed is not None:
                require("seed_everything", seed, at_least=0, at_most=2**32 - 1, remedy="give e.g. 0")

    # -- the trainer around the run folder ----------------------------------------------------------------------

    @property
    def built(self) -> Any:
        """The instantiated sections."""
        return self.config_init[self.subcommand] if self.subcommand else self.config_init

    @property
    def folder(self) -> RunFolder:
        return self.built["run"].folder

    @property
    def fitting(self) -> bool:
        """Whether the trainer trains."""
        return self.subcommand != "validate"

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        options, fitting = self.built["trainer"], self.fitting
        if fitting and options.max_steps < 1:
            raise UserError(
                f"trainer.max_steps is {options.max_steps}, but training is an endless stream: give --trainer.max_steps"
            )
        wrapped = around(self.folder, options, self.built["checkpoints"], fitting)
        try:
            return super().instantiate_trainer(**kwargs | wrapped)
        except (TypeError, ValueError) as error:
            raise UserError(f"the trainer cannot be built: {one_line(str(error))}") from None

    # -- the commands -------------------------------------------------------------------------------------------

    @property
    def resolved(self) -> Any:
        """The parsed configuration of the command."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def text(self, **options: Any) -> str:
        """The resolved configuration as YAML."""
        return parser_of(self).dump(self.resolved, skip_unset=False, **options)

    def fit(self, model: CausalLM, datamodule: TokenData, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train into the run folder: start, resume an interrupted run, or report that it is finished."""
        config = yaml.safe_load(self.text())
        text = self.text(skip_link_targets=True)
        if run(self.trainer, model, datamodule, config, text, ckpt_path, **kwargs) is None:
            raise SystemExit(UNFINISHED)

    def validate(self, model: CausalLM, datamodule: TokenData, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Measure a checkpoint (the run folder's last one if none is given) and write it below validation/."""
        path = Path(ckpt_path) if ckpt_path else self.folder.last_checkpoint
        if path is None or not path.exists():
            missing = f"no checkpoint {path}" if path else f"no complete checkpoint in {self.folder.checkpoints}"
            raise UserError(f"there is {missing}: give --ckpt_path, or --run.dir of a finished run")
        datamodule.prepare_data()
        identify(self.trainer, model, datamodule, yaml.safe_load(self.text()))
        self.trainer.validate(model, datamodule=datamodule, ckpt_path=str(path), **kwargs)
        if "validation/loss" not in self.trainer.callback_metrics:
            raise UserError("no row was validated: give a --trainer.limit_val_batches above 0, or leave it out")
        statistics = next(c.latest for c in self.trainer.callbacks if isinstance(c, SinkStatistics))
        loss = float(self.trainer.callback_metrics["validation/loss"])
        identity = recorder_of(self.trainer).identity
        result = {"validation/loss": loss} | statistics | identity
        if self.trainer.is_global_zero:
            file = self.folder.write_validation(path.resolve(), result, provenance())
            print(f"validation/loss {loss:.6f}  ->  {file}")


@cache
def reject_repeated_keys_in_values() -> None:
    """Let jsonargparse reject a repeated key in a value, or in a file that a value or another file names."""
    OneLineErrors(parser_mode=PARSER_MODE).parse_string("{}")  # jsonargparse makes a mode's loader at its first use
    load = get_loader(PARSER_MODE)

    def load_unique(text: str) -> Any:
        if ":" in text:
            reject_repeated_keys(text, "a value of the configuration")
        return load(text)

    set_loader(PARSER_MODE, load_unique, (yaml.YAMLError,))


def quieten() -> None:
    """Silence advertisements and warnings about deliberate choices; warnings about the user's run stay."""
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
        ".*Unable to serialize instance.*",  # of an expression that is an error right after
    ):
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # raised by Lightning's own calls
    threading.excepthook = print_unless_disk_full


def command_line(arguments: list[str], run: bool = True, cli: type[TrainingCLI] = TrainingCLI) -> TrainingCLI:
    """Parse and run; with `run=False` (and no command among the arguments) only build trainer, model and data."""
    quieten()
    command, options = arguments[:run], arguments[run:]
    arguments = TrainingParser.arguments = [*command, *files_first(options)]
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    OmegaConf.register_resolver("cpu_precision", cpu_precision, replace=True)
    reject_repeated_keys_in_values()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    try:
        return cli(
            CausalLM,
            TokenData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS | {"callbacks": [make() for make in ALWAYS]},
            seed_everything_default=0,
            parser_class=TrainingParser,
            parser_kwargs={"prog": "sinks", "parser_mode": PARSER_MODE, "allow_abbrev": False},
            save_config_callback=None,  # written by the run itself
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
            run=run,
        )
    except OmegaConfBaseException as error:
        raise UserError(f"{one_line(str(error))}: check the expression between ${{ and }}") from None
    except yaml.YAMLError as error:
        # OmegaConf reads values back as YAML, which cannot hold half of a surrogate pair.
        raise UserError(f"{one_line(str(error))}: a value has a character that is no text, leave it out") from None
    except MisconfigurationException as error:
        raise UserError(one_line(str(error))) from None
    except Exception as error:
        # jsonargparse treats a UserError of a constructor as a type mismatch, and raises its own list.
        if (mistake := users_mistake(error)) is None:
            raise
        raise mistake from None
