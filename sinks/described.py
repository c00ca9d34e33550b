"""Objects that keep their constructor arguments, so that a run started in Python has a configuration."""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any

from sinks.errors import UserError


class Described:
    """Keeps the arguments of its constructor in `init_args`."""

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        given = inspect.signature(cls).bind_partial(*args, **kwargs).arguments
        object.__setattr__(
            self, "init_args", {k: v for k, v in given.items() if k != "kwargs"} | given.get("kwargs", {})
        )
        return self


def section_of(built: Described, *linked: str) -> dict[str, Any]:
    """`class_path` and `init_args` of a configuration that build the same object.

    Args:
        built: a model or data module.
        linked: arguments that the configuration links from other sections.

    Raises:
        UserError: if an argument is not a plain value, class, or functools.partial of a class.
    """
    arguments = {name: _plain(name, value) for name, value in built.init_args.items() if name not in linked}
    return {"class_path": _path(type(built)), "init_args": arguments}


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, type):
        return {"class_path": _path(value)}
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        options = {option: _plain(option, given) for option, given in value.keywords.items()}
        return {"class_path": _path(value.func), "init_args": options}
    raise UserError(
        f"{name} is {value!r}, which config.yaml cannot hold: give a class, or functools.partial(CLASS, option=...)"
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
