"""What the command line answers at once, without importing torch."""

import re
import subprocess
import sys
import time

import pytest
import torch

from sinks import __version__
from sinks.cli import COMMANDS, main

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
