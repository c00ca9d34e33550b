"""Mistyped options, found without importing torch and Lightning, which takes seconds."""

import ast
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sinks.errors import UserError

# Sections whose options are those of one class: its package, the file in it, and its name.
SOURCES = {
    "trainer": ("lightning", "pytorch/trainer/trainer.py", "Trainer"),
    "run": ("sinks", "callbacks/recorder.py", "RunRecorder"),
    "statistics": ("sinks", "callbacks/statistics.py", "SinkStatistics"),
    "progress": ("sinks", "callbacks/progress.py", "LineProgress"),
    "notes": ("sinks", "callbacks/health.py", "HealthNotes"),
    "checkpoints": ("sinks", "callbacks/checkpoints.py", "RunCheckpoints"),
}
# The other options of the training commands; those of a model or data module depend on its class.
OTHERS = (
    "model", "data", "seed_everything", "ckpt_path", "weights_only", "verbose",
    "config", "help", "print_config", "print_completion", "print_shtab",
)  # fmt: skip
OPTION = re.compile(r"--(\w+)(?:\.(\w+))?")


def suggestion(name: str, known: Collection[str]) -> str | None:
    """`did you mean NAME?` with the known name that is nearest; None if none is near."""
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else None


@cache
def options_of(section: str) -> frozenset[str]:
    """The options of a section of the training commands, as its class's source has them.

    Args:
        section: a key of `SOURCES`.
    """
    package, file, name = SOURCES[section]
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    methods = (node for found in classes for node in found.body if isinstance(node, ast.FunctionDef))
    arguments = next(method.args for method in methods if method.name == "__init__")
    return frozenset(argument.arg for argument in (*arguments.args[1:], *arguments.kwonlyargs))


def reject_mistyped(arguments: Sequence[str]) -> None:
    """Check the names of a training command's options; one that is near to none is left to the parser.

    Args:
        arguments: of the command line, after the command.

    Raises:
        UserError: naming an unknown option and the known one that it is near to.
    """
    for section, option in (found.groups() for found in map(OPTION.match, arguments) if found):
        path = section if option is None else f"{section}.{option}"
        if section not in (*SOURCES, *OTHERS):
            remedy = suggestion(section, (*SOURCES, *OTHERS))
        elif option is None or section not in SOURCES or option in options_of(section):
            continue
        else:
            remedy = suggestion(option, options_of(section))
        if remedy:
            raise UserError(f"command line: {path} is no option: {remedy}")
