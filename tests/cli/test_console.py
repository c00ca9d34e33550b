"""What the command line answers at once, without importing torch."""

import inspect
import re
import shlex
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import pytest
import torch
from jsonargparse import ArgumentParser

from sinks import __version__
from sinks.cli import COMMANDS, main
from sinks.cli.help import ABOUT, SECTIONS, short_help
from sinks.cli.nearest import OTHERS, SOURCES, options_of, reject_mistyped
from sinks.cli.training import TrainingCLI, command_line, subclasses
from sinks.data.text import Text
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.lightning_private import subparser_of
from tests.cli.small import ROOT, SMALL

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


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_a_training_command_comes_at_once_and_fits_two_screens(command: str, flag: str) -> None:
    code, output, errors = answer(command, "-c", "no-such-file.yaml", flag)
    assert (code, errors) == (0, "")
    assert output.startswith(f"usage: sinks {command} ")
    assert output.endswith(f"`sinks {command} --help-all` lists every option with its type and default.\n")


def test_the_short_help_fits_two_screens_and_names_what_exists(options: dict[str, set[str]]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(CausalLM, "model", fail_untyped=False)
    parser.add_class_arguments(Text, "data", fail_untyped=False)
    axes = {f"model.{name}" for name in inspect.signature(CausalLM).parameters}
    others = {"model.help", "data.help", "devices", "json", "help-all"}
    known = {*parser.get_defaults().keys(), *axes, *options["fit"], *others}
    for command in ABOUT:
        text = short_help(command, ["--help"])
        assert text is not None
        lines = text.splitlines()
        assert len(lines) <= 100
        assert max(map(len, lines)) <= 120
        assert set(re.findall(r"--([a-z][\w.-]*\w)", text)) <= known
        for file in re.findall(r"experiments/\S+\.yaml", text):
            assert (ROOT / file).is_file()
    sections = {name.split(".")[0] for name in options["fit"]}
    assert sections - {*re.findall(r"--(\w+)", SECTIONS)} == {"weights_only", "help"}
    families = {family.__name__ for family in subclasses(CausalLM) if family.__module__.startswith("sinks.")}
    assert families <= {*re.findall(r"\w+", SECTIONS)}


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_help_all_has_every_option(
    command: str, options: dict[str, set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    output = capsys.readouterr().out
    assert {name for name in options[command] if f"--{name}" not in output} == set()
    assert output.count("\n") > 400


def test_help_all_of_a_plan_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help-all"])
    assert "--trainer.max_time" in capsys.readouterr().out
    assert main(["plan", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: sinks plan ")


def test_the_example_of_fit_is_a_configuration() -> None:
    (example,) = re.findall(r"^  sinks fit ((?:.*\\\n)*.*)", ABOUT["fit"], re.MULTILINE)
    arguments = shlex.split(example.replace("\\\n", " "))
    files = [f"{ROOT}/{part}" if part.startswith("experiments/") else part for part in arguments]
    assert command_line(files, run=False).trainer.max_steps == 200
