"""Parsers that tell a user's mistake in one line and exit with code 2."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from sinks.errors import UserError


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


def refuse_unknown_sections(arguments: list[str], parser: ArgumentParser) -> None:
    """jsonargparse passes over an unknown section that is empty; a typing mistake must not.

    Raises:
        UserError: naming the section and the known ones.
    """
    known = {action.dest.split(".")[0] for action in parser._actions}
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, attached = flag.partition("=")
        if name not in ("-c", "--config"):
            continue
        file = Path(attached or value)
        if not file.is_file():
            raise UserError(f"there is no configuration file {file}: check the path, relative to {Path.cwd().name}/")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not YAML: {one_line(str(error))}") from None
        if not isinstance(content, dict):
            raise UserError(
                f"{file} holds {type(content).__name__}, but must hold sections: {', '.join(sorted(known))}"
            )
        for section in content:
            if section == "hybrid_moe" and section not in known:
                raise UserError(
                    f"{file} describes a hybrid mixture of experts, which can only be planned: use `sinks plan`, or "
                    "give another model"
                )
            if section.split(".")[0] not in known:
                raise UserError(
                    f"{file} has an unknown section {section!r}: known are {', '.join(sorted(known - {'help'}))}"
                )
