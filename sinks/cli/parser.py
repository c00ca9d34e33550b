"""Parsers that report a user error in one line and exit with code 2."""

import json
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from sinks.cli.nearest import suggestion
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.formats import FORMAT, upgrade
from sinks.record.yaml_file import read_yaml

CONFIG = "--config="


def one_line(message: str) -> str:
    """A message on one line, without the indentation and bullets of several."""
    return " ".join(part.strip().removeprefix("- ") for part in str(message).splitlines() if part.strip())


class OneLineErrors(ArgumentParser):
    """Prints `sinks: error: message` without the usage, which for a training command is hundreds of lines long."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a trial of one type, or a nested parser whose parent adds the path
            super().error(message, ex)
        unknown = re.match(r"unrecognized arguments: --([\w-]+)", message)
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        if unknown and (remedy := suggestion(unknown[1], known)):
            message = f"{unknown[1]} is no option: {remedy}"
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


def files_first(arguments: list[str]) -> list[str]:
    """The arguments with those that name configuration files first: an option wins over any file, wherever it is.

    Args:
        arguments: of a command; `-c FILE` and its other spellings become `--config=FILE`.
    """
    files, options = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("-c", "--config"):
            files.append(f"{CONFIG}{next(remaining, '')}")
        elif argument.startswith(("-c", CONFIG)):
            files.append(CONFIG + argument.removeprefix(CONFIG).removeprefix("-c").removeprefix("="))
        else:
            options.append(argument)
    return files + options


def configuration_files(arguments: list[str]) -> dict[int, Path]:
    """The configuration files, by the place of the argument that names them; all exist."""
    files = {i: Path(given.removeprefix(CONFIG)) for i, given in enumerate(arguments) if given.startswith(CONFIG)}
    for file in files.values():
        if not file.is_file():
            raise UserError(f"there is no configuration file {file}: check the path, relative to {Path.cwd().name}/")
    return files


def read_sections(file: Path, options: Collection[str]) -> dict[str, Any]:
    """The sections of a configuration file; jsonargparse ignores an unknown empty one, which may be a typo.

    Args:
        file: YAML.
        options: all that there are, dotted.

    Raises:
        UserError: if it is not YAML of known sections, or a section is empty, naming the file and the section.
    """
    known = {name.split(".")[0] for name in options}
    nested = {name.split(".")[0] for name in options if "." in name}
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} holds {type(content).__name__}, but must hold sections: {', '.join(sorted(known))}")
    for section, entries in content.items():
        if str(section).split(".")[0] not in known:
            raise UserError(f"{file} has an unknown section {section!r}: known are {', '.join(sorted(known))}")
        if entries is None and section in nested:
            raise UserError(f"{file} has an empty section {section!r}: give it an option, or leave it out")
    return content


def checked_configs(arguments: list[str], parser: ArgumentParser) -> list[str]:
    """Arguments whose configuration files are validated; that of an older run folder is given as it is now."""
    options = list(parser.get_defaults().keys())
    checked = list(arguments)
    for place, file in configuration_files(arguments).items():
        content = read_sections(file, options)
        if (file.parent / "provenance.json").is_file() and RunFolder(file.parent).format != FORMAT:
            checked[place] = CONFIG + json.dumps(upgrade(content))
    return checked
