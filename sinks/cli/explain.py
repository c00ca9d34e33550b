"""jsonargparse's error messages in one line that names the file and the option by its path."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse

from sinks.cli.nearest import SOURCES, options_of, suggestion
from sinks.cli.parser import CONFIG, one_line
from sinks.record.yaml_file import read_yaml

UNKNOWN = re.compile(r"(?:does not accept option|Option) '([^']+)'|unrecognized arguments: --([\w.]+)")
WRONG = re.compile(r"(Expected (?:a|an|one of)?.*?)\.? Got value: (\S+)")
# The innermost list of types, none of which fits.
UNION = re.compile(r".*Subtypes: \[(.*?)\] Errors:.*?Given value: (\S+)")
PLACE = re.compile(r"Parser key \"([^\"]+)\"|Group '([^']+)'")
GROUP = re.compile(r"Group '([^']+)'")
CLASS = re.compile(r"class_path[=' ]+([\w.]+)'")
# Levels of a file that a path on the command line does without.
NOT_NAMED = ("init_args", "class_path")


def explain(message: str, arguments: Sequence[str]) -> str:
    """A parser's message as `where: path is ...`; a message of another kind is returned on one line.

    Args:
        message: of jsonargparse.
        arguments: of the command line, with its configuration files.
    """
    text = one_line(message)
    places = [key or group for key, group in PLACE.findall(text)]
    unknown, wrong, union = UNKNOWN.search(text), WRONG.search(text), UNION.search(text)
    if unknown:
        option = unknown[1] or unknown[2]
        path = ".".join([*(place for place in places if not option.startswith(f"{place}.")), option])
        owners = CLASS.findall(text[: unknown.start()]) + CLASS.findall(text[unknown.end() :])[:1]
        groups = GROUP.findall(CLASS.split(text[: unknown.end()])[-1])
        within = ".".join([*(group for group in groups if not option.startswith(f"{group}.")), option])
        problem = f"is no option{_known(owners, within)}"
    elif wrong and places:
        path = ".".join(places)
        problem = f"is {wrong[2].rstrip(',')}, but must be {_types(wrong[1])}"
    elif union and len(places) > 1:
        path = ".".join(places)
        problem = f"is {union[2].rstrip(',')}, but must be {_types(union[1])}"
    else:
        return text
    return f"{_where(path, arguments)}{path} {problem}"


def _types(expected: str) -> str:
    plain = re.sub(r"Expected (an? )?|<class '|'>|\]$", "", expected)
    return plain.replace("typing.Literal[", "one of ").replace("NoneType", "null")


def _where(path: str, arguments: Sequence[str]) -> str:
    """The last configuration file that sets an option, or the argument that does."""
    for argument in reversed(arguments):
        if argument.startswith(f"--{path}"):
            return "command line: "
        file = Path(argument.removeprefix(CONFIG))
        if argument.startswith(CONFIG) and _sets(read_yaml(file), path.split("."), []):
            return f"{file}: "
    return ""


def _sets(section: Any, keys: list[str], above: list[str]) -> bool:
    """Whether a section of a file, below the path `above`, sets an option; levels between may be left out."""
    for key, value in section.items() if isinstance(section, Mapping) else ():
        at = above if key in NOT_NAMED else above + str(key).split(".")
        if at == keys or (len(at) > 1 and (at[0], at[-1]) == (keys[0], keys[-1])) or _sets(value, keys, at):
            return True
    return False


def _known(owners: list[str], option: str) -> str:
    """The class that lacks an option (`group.option` within the class), if it is known, and the nearest option."""
    for module, _, name in (owner.rpartition(".") for owner in reversed(owners)):
        parser = jsonargparse.ArgumentParser()
        try:
            parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
            options = [f".{key}" for key in vars(parser.get_defaults().as_flat())]
        except (ImportError, AttributeError, ValueError, TypeError):
            continue
        group, _, wrong = f".{option}".rpartition(".")
        below = [key.removeprefix(f"{group}.") for key in options if key.startswith(f"{group}.")]
        known = list(dict.fromkeys(key.split(".")[0] for key in below))
        return f" of {name}: " + (suggestion(wrong, known) or f"it has {', '.join(known)}")
    section, _, wrong = option.partition(".")
    near = suggestion(wrong, options_of(section)) if section in SOURCES else None
    return f": {near or 'see sinks fit --help-all'}"
