"""What the command line answers at once, without importing torch."""

import re
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import pytest
import torch

from sinks import __version__
from sinks.cli import COMMANDS, main
from sinks.cli.nearest import OTHERS, SOURCES, options_of, reject_mistyped
from sinks.cli.training import TrainingCLI, command_line
from sinks.errors import UserError
from sinks.lightning_private import subparser_of
from tests.cli.small import SMALL

WITHOUT_TORCH = """
import sys
from sinks.cli import main
code = main({arguments!r})
assert "torch" not in sys.modules
sys.exit(code)
"""


def answer(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, which imports no torch and takes less than two seconds."""
    start = time.perf_counter()
    code = WITHOUT_TORCH.format(arguments=[*arguments])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert time.perf_counter() - start < 2
    return done.returncode, done.stdout, done.stderr


def test_the_version_is_one_line() -> None:
    code, output, errors = answer("--version")
    assert (code, errors, output.count("\n")) == (0, "", 1)
    commit = r"(?: \(commit [0-9a-f]{12,}(?: with changes)?\))?"
    found = re.fullmatch(rf"sinks (\S+){commit}, torch (\S+), lightning \d\S*, triton \S+\n", output)
    assert found
    assert found.groups() == (__version__, torch.__version__.split("+")[0])


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("analyse", "analyze"), ("reports", "report")])
def test_an_unknown_command_suggests_the_nearest(typed: str, meant: str) -> None:
    assert answer(typed) == (2, "", f"sinks: error: unknown command {typed!r}: did you mean {meant}?\n")


def test_an_unknown_command_that_is_near_to_none_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzz"]) == 2
    assert capsys.readouterr().err == f"sinks: error: unknown command 'zzz': choose one of {', '.join(COMMANDS)}\n"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """All options of each training command, as the parsers have them."""
    found: dict[str, set[str]] = {}

    def note(cli: TrainingCLI, parser: Any, arguments: Any) -> None:
        for command in ("fit", "validate"):
            names = subparser_of(cli, [command], parser)._option_string_actions
            found[command] = {name.removeprefix("--").rstrip("+") for name in names if name.startswith("--")}
        raise SystemExit

    with mock.patch.object(TrainingCLI, "parse_arguments", note), pytest.raises(SystemExit):
        command_line(["fit"])
    return found


def test_the_options_read_from_sources_are_the_parsers(options: dict[str, set[str]]) -> None:
    every = options["fit"] | options["validate"]
    assert {name.split(".")[0] for name in every} <= {*SOURCES, *OTHERS}
    assert {*SOURCES, *OTHERS} - every == {"print_completion", "print_shtab"}  # with the package shtab
    for section in SOURCES:
        parsed = {name.split(".")[1] for name in every if name.startswith(f"{section}.")}
        assert options_of(section) == parsed


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--trainer.max_stesp=3", "trainer.max_stesp is no option: did you mean max_steps?"),
        ("--statistcs.maps=false", "statistcs.maps is no option: did you mean statistics?"),
        ("--run.varint=a", "run.varint is no option: did you mean variant?"),
        ("--sed_everything=1", "sed_everything is no option: did you mean seed_everything?"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_mistyped_option_suggests_the_nearest(command: str, argument: str, expected: str) -> None:
    code, output, errors = answer(command, *SMALL, argument)
    assert (code, output, errors) == (2, "", f"sinks: error: command line: {expected}\n")


def test_known_options_and_those_near_to_none_are_left_to_the_parser() -> None:
    reject_mistyped([*SMALL, "--trainer.logger.help", "--trainer.callbacks+=a", "--model.x", "--data.y=--z", "--zzz"])
    reject_mistyped(["-c", "runs/statistcs", "--run.zzzzzz=--", "--print_completion"])
    with pytest.raises(UserError):
        reject_mistyped([*SMALL, "--trainr.devices=1"])


def test_a_mistyped_option_of_another_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--otu=x", "runs"])
    assert capsys.readouterr().err == "sinks: error: otu is no option: did you mean out?\n"
