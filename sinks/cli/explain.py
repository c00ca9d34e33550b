"""What jsonargparse says of a mistake, in one line that names the file and the option by its path."""

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from sinks.cli.parser import one_line

UNKNOWN = re.compile(
    r"(?:(?:does not accept option|Option) '(?P<option>[^']+)'|unrecognized arguments: --(?P<flag>[\w.]+))"
)
WRONG = re.compile(r"(?P<problem>Expected (?:a|an|one of)?.*?)\.? Got value: (?P<value>\S+)")
PLACE = re.compile(r"Parser key \"(?P<key>[^\"]+)\"|Group '(?P<group>[^']+)'")
CLASS = re.compile(r"class_path[=' ]+(?P<path>[\w.]+)'")
# Levels of a file that a path on the command line does without.
NOT_NAMED = ("init_args", "class_path")


def explain(message: str, arguments: Sequence[str]) -> str:
    """A parser's message as `where: path is ...`, or the message itself where it is of another kind.

    Args:
        message: of jsonargparse.
        arguments: of the command line, with its configuration files.
    """
    text = one_line(message)
    places = [key or group for key, group in PLACE.findall(text)]
    unknown, wrong = UNKNOWN.search(text), WRONG.search(text)
    if unknown:
        option = unknown["option"] or unknown["flag"]
        path = ".".join([*(place for place in places if not option.startswith(f"{place}.")), option])
        owners = CLASS.findall(text[: unknown.start()]) + CLASS.findall(text[unknown.end() :])[:1]
        return f"{_where(path, arguments)}{path} is no option{_known(owners, option)}"
    if wrong and places:
        path = ".".join(places)
        expected = wrong["problem"].replace("<class '", "").replace("'>", "").lower()
        return f"{_where(path, arguments)}{path} is {wrong['value'].rstrip(',')}, but must be as {expected}"
    return text


def _where(path: str, arguments: Sequence[str]) -> str:
    """The last configuration file that has the option, or the argument that gives it."""
    keys = path.split(".")
    for argument, following in reversed(list(zip(arguments, [*arguments[1:], ""], strict=True))):
        flag, _, value = argument.partition("=")
        if flag.startswith(f"--{path}"):
            return "command line: "
        file = Path(value or following)
        if flag in ("-c", "--config") and any(_ends_alike(found, keys) for found in _paths(_content(file))):
            return f"{file}: "
    return ""


def _content(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _paths(section: Any) -> Iterator[list[str]]:
    """The path of every option of a file, as the command line names it."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            own = [] if key in NOT_NAMED else str(key).split(".")
            yield own
            yield from (own + rest for rest in _paths(value))


def _ends_alike(found: list[str], keys: list[str]) -> bool:
    return found == keys or (len(found) > 1 and found[-1] == keys[-1] and found[0] == keys[0])


def _known(owners: list[str], option: str) -> str:
    """Of which class, and what it is nearest to."""
    for owner in reversed(owners):
        module, _, name = owner.rpartition(".")
        try:
            known = list(inspect.signature(getattr(import_module(module), name)).parameters)
        except (ImportError, AttributeError, ValueError, TypeError):
            continue
        near = difflib.get_close_matches(option.rpartition(".")[2], known, 1)
        return f" of {name}: " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}")
    return ": see --help"
