"""`sinks check`: tests the properties of every variant on one of them in a minute."""

import sys

from lightning.pytorch.cli import LightningArgumentParser

from sinks.cli.training import TrainingCLI, command_line
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.runs.failures import users_mistake

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

    def link_sections(self, parser: LightningArgumentParser) -> None:
        """Nothing: vocabulary and context are given."""

    def instantiate_classes(self) -> None:
        """Nothing: every property builds a model of its own."""

    def build(self) -> CausalLM:
        """A new model."""
        return self.parser.instantiate_classes(self.config)["model"]


def arguments_of(arguments: list[str]) -> list[str]:
    """The command's arguments as those of the training command: a variant's file comes first."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UserError("what is to be checked is missing: sinks check VARIANT.yaml [--model.OPTION VALUE ...]")
    if arguments[0] in ("-h", "--help"):
        return arguments
    small = [f"--model.{name}={value}" for name, value in SMALL.items()]
    return ["-c", arguments[0], *small, "--run.dir=unused", *arguments[1:]]


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks check`; exits with 1 if a property does not hold."""
    cli = command_line(arguments_of(arguments), run=False, cli=CheckCLI)
    assert isinstance(cli, CheckCLI)
    import torch

    from sinks.checks import check

    torch.set_num_threads(1)  # more threads would spend more time waiting than such a model takes
    try:
        cli.build()
    except Exception as error:
        raise (users_mistake(error) or error) from None
    results = []
    for line in check(cli.build):
        print(line, flush=True)
        results.append(line.result)
    print(f"{results.count('passed')} passed, {results.count('failed')} failed, {results.count('not tried')} not tried")
    if "failed" in results:
        sys.exit(1)
