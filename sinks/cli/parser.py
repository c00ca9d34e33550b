"""Parsers that tell a user's mistake in one line and exit with code 2."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


def one_line(message: str) -> str:
    """A message on one line, without the indentation and bullets of several."""
    return " ".join(part.strip().removeprefix("- ") for part in str(message).splitlines() if part.strip())


class OneLineErrors(ArgumentParser):
    """Prints `sinks: error: message` without the usage, which for a training command is hundreds of lines long."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"sinks: error: {one_line(message)}", file=sys.stderr)
        sys.exit(2)


def run_function(
    function: Callable[..., Any], command: str, arguments: list[str], several: tuple[str, str] | None = None
) -> Any:
    """Call a typed function with its arguments from the command line: required ones by place, the others by flag.

    Args:
        function: whose signature and docstring make the parser.
        command: name after `sinks`.
        arguments: what follows on the command line.
        several: name and help of an optional list that is given by place.
    """
    description = (function.__doc__ or "").split("\n")[0]
    parser = OneLineErrors(prog=f"sinks {command}", description=description, allow_abbrev=False)
    if several:
        parser.add_argument(several[0], nargs="*", type=str, default=[], help=several[1])
    skip = {several[0]} if several else set()
    parser.add_function_arguments(function, as_positional=True, fail_untyped=True, skip=skip)
    parsed = dict(vars(parser.instantiate(parser.parse_args(arguments))))
    if several:
        parsed[several[0]] = parsed[several[0]] or None
    return function(**parsed)
