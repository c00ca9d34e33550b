"""Rooms talk through public names, and Lightning's private ones stand in one file."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import lightning
import pytest

import sinks

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for room in ("sinks", "kernels", "benchmarks")
    for path in (ROOT / room).rglob("*.py")
    if path.parts[-1] != "lightning_private.py"
)
# Private names of what stands outside Lightning and the suite: there is no public one.
OUTSIDE = ("torch", "tensor", "linear", "os", "atexit", "threading", "dist", "storage", "functional_collectives")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_private_name_of_another_room(file: Path) -> None:
    package = ".".join(
        file.relative_to(ROOT / "kernels" if "kernels" in file.parts[:-2] and "sink_kernels" in file.parts else ROOT)
        .with_suffix("")
        .parts
    )
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            ours = node.module.split(".")[0] in ("sinks", "sink_kernels", "benchmarks")
            if (ours and room_of(node.module) != room_of(package)) or node.module.startswith("lightning"):
                assert [alias.name for alias in node.names if alias.name.startswith("_")] == []
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
            inherited = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
            assert own or inherited or root_of(node) in OUTSIDE or _of_this_file(node, file), (
                f"{file}:{node.lineno} {node.attr}"
            )


def root_of(node: ast.expr) -> str:
    """The name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _of_this_file(node: ast.Attribute, file: Path) -> bool:
    """Whether the name is a NamedTuple's method or one that a class of the same file defines."""
    text = file.read_text(encoding="utf-8")
    return node.attr in ("_replace", "_asdict", "_fields") or f"self.{node.attr}" in text or f"def {node.attr}(" in text


def test_no_class_overrides_a_private_name_of_lightning() -> None:
    found = []
    for info in pkgutil.walk_packages(sinks.__path__, "sinks."):
        if info.name == "sinks.__main__" or info.name == "sinks.lightning_private":
            continue
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] != "lm_eval":  # an extra that may be absent
                raise
            continue
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ != info.name:
                continue
            theirs = [base for base in kind.__mro__[1:] if base.__module__.startswith("lightning.")]
            for name in vars(kind):
                if name.startswith("_") and not name.startswith("__"):
                    found += [f"{kind.__qualname__}.{name}" for base in theirs if name in vars(base)]
    assert [name for name in found if "_abc_impl" not in name and "__parameters__" not in name] == []
    assert lightning.__version__
