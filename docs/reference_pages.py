"""The pages of docs/reference/: commands, options, and the Python interface, each from what the code says of itself."""

import inspect
import io
import os
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints
from unittest import mock

from docstrings import escaped

import sinks
from sinks.cli import COMMANDS, run, usage
from sinks.cli.training import TrainingCLI, command_line
from sinks.data.module import TokenData
from sinks.families import CausalLM
from sinks.lightning_private import subparser_of
from sinks.models.mixers import SequenceMixer

WIDTH = "100"  # of the commands' help, in columns
# Packages whose modules are described, in the order of the site; a page each.
PACKAGES = (
    "sinks.families", "sinks.models", "sinks.data", "sinks.runs", "sinks.callbacks", "sinks.observe", "sinks.stats",
    "sinks.record", "sinks.interop", "sinks.probes", "sinks.quantize", "sinks.transfer", "sinks.checks", "sinks.plan",
    "sinks.report", "sinks.parallel", "sink_kernels",
)  # fmt: skip


def write_pages(folder: Path) -> None:
    """Write every page, and remove those of an earlier build.

    Args:
        folder: docs/reference.
    """
    pages = {"commands.md": commands(), "options.md": options(), "parts.md": parts(), "python.rst": python()}
    pages |= {f"{package}.rst": module_page(package) for package in PACKAGES}
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.name not in pages:
            file.unlink()
    for name, text in pages.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:  # Sphinx reads again what is newer
            file.write_text(text, encoding="utf-8")


def printed(function: Callable[[], Any]) -> str:
    """What a command prints."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=WIDTH), redirect_stdout(out), suppress(SystemExit):
        function()
    return out.getvalue().rstrip()


def commands() -> str:
    """Every command's `--help`."""
    lines = ["# Commands", "", "```text", usage(), "```", ""]
    for name, (_, description) in COMMANDS.items():
        shown = printed(partial(run, [name, "--help"]))
        sentence = f"{description[0].upper()}{description[1:].rstrip('?')}{'?' if description.endswith('?') else '.'}"
        lines += [f"## sinks {name}", "", sentence, "", "```text", shown, "```", ""]
    return "\n".join(lines)


class _Parsed(Exception):
    """Carries the parser of `sinks fit` out of Lightning's command line."""


class _ParserOnly(TrainingCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Parsed(subparser_of(self, args, parser))


def fit_parser() -> Any:
    """The parser of `sinks fit`."""
    try:
        command_line(["fit"], cli=_ParserOnly)
    except _Parsed as found:
        return found.args[0]
    raise AssertionError("the command line was not parsed")


def cell(text: object) -> str:
    """Text for a cell of a Markdown table, with its `code`."""
    pieces = re.split(r"(`[^`]+`)", " ".join(str(text).replace("``", "`").split()))
    escaped_marks = (re.sub(r"([|*_<>\[\]`])", r"\\\1", piece) for piece in pieces[::2])
    spans = [piece.replace("|", r"\|") for piece in pieces[1::2]]
    return "".join(text + span for text, span in zip(escaped_marks, [*spans, ""], strict=True))


def code(value: object) -> str:
    """A value as code in a cell; nothing for none."""
    text = " ".join(str(value).split())
    return f"`{text}`".replace("|", r"\|") if text else ""


def kind_of(action: Any) -> str:
    """The type of an option, without the modules of its names."""
    kind = getattr(action, "_typehint", None) or action.type
    shown = kind.__name__ if isinstance(kind, type) else str(kind or "")
    return re.sub(r"(?:\w+\.)+(?=\w)", "", re.sub(r"Optional\[(.*)\]$", r"\1 | None", shown))


def options() -> str:
    """Every option of `sinks fit`, a table for each section."""
    lines = [
        "# Options", "",
        "Of `sinks fit`, in the sections of a YAML file; `sinks fit --help-all` prints them. The options of a class,",
        "such as a family or a norm, are those of its constructor: [Parts](parts.md) has the classes.", "",
    ]  # fmt: skip
    for group in fit_parser()._action_groups:
        actions = [a for a in group._group_actions if a.option_strings and a.help != "==SUPPRESS=="]
        actions = [a for a in actions if not a.dest.endswith("help")]
        if not actions:
            continue
        sections = {a.dest.split(".")[0] for a in actions}
        lines += [f"## {sections.pop() if len(sections) == 1 else 'all'}", ""]
        lines += ["| option | type | default | what it is |", "|---|---|---|---|"]
        for action in actions:
            default = "" if action.default in (None, "==SUPPRESS==") else action.default
            text = re.split(r"\((?:type|required|default)\b", action.help or "")[0]
            names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
            lines.append(f"| `{names}` | {code(kind_of(action))} | {code(default)} | {cell(text)} |")
        lines.append("")
    return "\n".join(lines)


def summary(described: object) -> str:
    """The first sentence or line of a docstring."""
    return (inspect.getdoc(described) or "").split("\n\n")[0].replace("\n", " ")


def subclasses(base: type) -> Iterator[type]:
    """A class and those below it, in the project's public modules."""
    for child in base.__subclasses__():
        yield from subclasses(child)
    public = not any(part.startswith("_") for part in f"{base.__module__}.{base.__qualname__}".split("."))
    if public and not inspect.isabstract(base) and base.__module__.split(".")[0] == "sinks":
        yield base


def parts() -> str:
    """What each axis of a model can be, from the classes that there are."""
    for package in PACKAGES:
        for name in modules(package):
            import_module(name)
    axes: dict[str, type] = {"model": CausalLM, "data": TokenData, "model.init_args.mixer": SequenceMixer}
    for name, hint in get_type_hints(CausalLM.__init__).items():
        for option in get_args(hint) if isinstance(hint, UnionType) else (hint,):
            made = get_args(option)[-1] if get_origin(option) is Callable else None
            if isinstance(made, type) and made.__module__.startswith("sinks."):
                axes[f"model.init_args.{name}"] = made
    lines = [
        "# Parts", "",
        "What a YAML file can name at each axis: a class of the project by its short name, or your own by its import",
        "path. `sinks fit --model.help NAME` prints the options of a family.", "",
    ]  # fmt: skip
    for axis, base in axes.items():
        lines += [f"## {axis}", "", "| class | what it is |", "|---|---|"]
        for found in sorted(set(subclasses(base)), key=lambda c: c.__name__):
            path = f"{found.__module__}.{found.__qualname__}"
            lines.append(f"| {{py:class}}`{found.__name__} <{path}>` | {cell(summary(found))} |")
        lines.append("")
    return "\n".join(lines)


def modules(package: str) -> Iterator[str]:
    """A package and all of its public modules."""
    top = import_module(package)
    yield package
    for found in pkgutil.walk_packages(top.__path__, f"{package}."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield found.name


def module_page(package: str) -> str:
    lines = [package, "=" * len(package), ""]
    for name in modules(package):
        if name != package:
            lines += [name, "-" * len(name), ""]
        members = [] if hasattr(import_module(name), "__path__") else ["   :members:"]
        lines += [f".. automodule:: {name}", *members, ""]
    return "\n".join(lines)


def python() -> str:
    """The names that `import sinks` offers, and the packages."""
    lines = [
        "Python interface", "================", "",
        "What ``import sinks`` offers. Everything else is imported from its module.", "",
    ]  # fmt: skip
    for name in sinks.__all__:
        if not name.startswith("_"):
            offered = getattr(sinks, name)
            path = f"{offered.__module__}.{offered.__qualname__}"
            lines.append(f"- :py:obj:`{name} <{path}>`: {escaped(summary(offered))}")
    lines += ["", "Packages", "--------", "", ".. toctree::", "   :maxdepth: 1", "", *(f"   {p}" for p in PACKAGES)]
    return "\n".join(lines) + "\n"
