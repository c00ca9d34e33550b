"""Parsers that tell a user's mistake in one line and exit with code 2."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


def one_line(message: str) -> str:
    """A message on one line, without the indentation and bullets of several."""
    return " ".join(part.strip().removeprefix("- ") for part in str(message).splitlines() if part.strip())


class OneLineErrors(ArgumentParser):
    """Prints `prog: error: message` without the usage, which for a training command is hundreds of lines long."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"{self.prog}: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


def run_function(function: Callable[..., Any], command: str, arguments: list[str]) -> Any:
    """Call a typed function with its arguments from the command line: required ones by place, the others by flag."""
    parser = OneLineErrors(
        prog=f"sinks {command}", description=(function.__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_function_arguments(function, as_positional=True, fail_untyped=True)
    parsed = parser.instantiate_classes(parser.parse_args(arguments))
    return function(**{name: value for name, value in vars(parsed).items() if name != "config"})
