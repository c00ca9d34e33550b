"""`sinks check`: tests in a minute what must hold for every variant, or for every way a pretrained model can be run."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning.pytorch.cli import LightningArgumentParser

from sinks.cli.parser import run_function
from sinks.cli.training import TrainingCLI, command_line
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.runs.failures import users_mistake

if TYPE_CHECKING:
    from sinks.checks import Line

USAGE = "sinks check VARIANT.yaml [--model.OPTION VALUE ...], sinks check RUN_FOLDER, or sinks check MODEL"
HELP = f"""\
usage: {USAGE}

Test in a minute what must hold for every variant, or for every way a pretrained model can be run.

Example:
  sinks check experiments/variants/gated-both.yaml --model.norm_rank 4

The options of a variant are those of its family: `sinks fit --model.help NAME` lists them. Of a model:
"""

# Sizes small enough for float64 and finite differences; components and their options are the variant's.
SMALL = {
    "vocab_size": 11,
    "context_length": 12,
    "architecture.d_model": 16,
    "architecture.n_layers": 2,
    "architecture.n_heads": 4,
    "architecture.n_kv_heads": 2,
    "architecture.head_dim": 6,
    "architecture.ffn_hidden": 24,
    "architecture.init_std": 0.3,
}


class CheckCLI(TrainingCLI):
    """The model section of a configuration, at the size of `SMALL`; other sections are ignored."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(CausalLM, "model", subclass_mode=True)
        for section in ("trainer", "data"):
            parser.add_argument(f"--{section}", type=dict | None, default=None, help="ignored")
        for option in ("ckpt_path", "weights_only"):  # of `sinks fit`, in the configuration of a run
            parser.add_argument(f"--{option}", type=str | bool | None, default=None, help="ignored")

    def link_sections(self, parser: LightningArgumentParser) -> None:
        """Nothing: vocabulary and context are given."""

    def instantiate_classes(self) -> None:
        """Nothing: every property builds a model of its own."""

    def build(self) -> CausalLM:
        """A new model."""
        return self.parser.instantiate_classes(self.config)["model"]


def arguments_of(arguments: list[str]) -> list[str]:
    """The command's arguments as those of the training command: a variant's file comes first."""
    small = [f"--model.{name}={value}" for name, value in SMALL.items()]
    return ["-c", arguments[0], *small, "--run.dir=unused", *arguments[1:]]


def configuration_of(name: str) -> Path | None:
    """The configuration to check: a YAML file itself, or that of a run folder; None: the name is that of a model.

    Raises:
        UserError: if the folder is that of an analysis, which has no variant.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if not (path / "provenance.json").is_file():
        return None
    if (path / "analysis.json").is_file():
        raise UserError(f"{path} is an analysis of a pretrained model, no training run: check the model itself")
    return path / "config.yaml"


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks check`; exits with 1 if a property does not hold."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UserError(f"what is to be checked is missing: {USAGE}")
    name, *options = arguments
    if name.startswith("-"):
        print(HELP)
        run_function(check_pretrained, command, ["--help"])
    elif (file := configuration_of(name)) is None:
        run_function(check_pretrained, command, arguments)
    else:
        check_variant([str(file), *options])


def check_variant(arguments: list[str]) -> None:
    """Check the variant of a configuration file."""
    cli = command_line(arguments_of(arguments), run=False, cli=CheckCLI)
    assert isinstance(cli, CheckCLI)
    import torch

    from sinks.checks import check

    torch.set_num_threads(1)  # more threads would spend more time waiting than such a model takes
    try:
        cli.build()
    except Exception as error:
        raise (users_mistake(error) or error) from None
    print_table(check(cli.build))


def check_pretrained(
    model: str,
    *,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    cache: Path = Path("data"),
    trust_remote_code: bool = False,
) -> None:
    """Test whether a pretrained model's sinks reach everything that runs, trains or saves it.

    Args:
        model: "smollm2", a folder, a .gguf file or a name on the Hugging Face hub.
        device: cpu, cuda, or auto: a GPU if there is one.
        dtype: of the weights.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that the model brings may run.
    """
    from sinks.interop.extra import require_extra

    require_extra("transformers")
    import torch
    from transformers.utils import logging

    from sinks.cli.analyze import device_of
    from sinks.interop.check import check_model
    from sinks.interop.load import load_pretrained

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load_pretrained(model, device_of(device), getattr(torch, dtype), trust_remote_code, cache)
    print_table(check_model(loaded.model))


def print_table(lines: Iterable["Line"]) -> None:
    """Print each line as soon as it is known, then their numbers; exits with 1 if a property does not hold."""
    results = []
    for line in lines:
        print(line, flush=True)
        results.append(line.result)
    print(f"{results.count('passed')} passed, {results.count('failed')} failed, {results.count('not tried')} not tried")
    if "failed" in results:
        sys.exit(1)
