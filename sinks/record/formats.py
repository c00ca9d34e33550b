"""Older formats of run folders: the format mark of provenance.json, and options since renamed."""

from collections.abc import Mapping
from typing import Any

from sinks.errors import UserError

FORMAT = 2
# Options of format 1 by their path in config.yaml: their present name, None for removed ones.
OLD_OPTIONS: dict[str, str | None] = {
    "model.init_args.baseline_run": None,
    "model.init_args.baseline_fraction": None,
    "model.init_args.optimization.one_dimensional_weight_decay": "scale_weight_decay",
    "model.init_args.optimization.one_dimensional_lr_multiplier": "scale_lr_multiplier",
}


def format_of(provenance: Mapping[str, Any], folder: Any) -> int:
    """The format of a run folder, validated; one without a mark is format 1."""
    mark = provenance.get("format", 1)
    if mark not in (1, FORMAT):
        raise UserError(f"{folder} is of format {mark}, but this version knows 1 and {FORMAT}: use a newer one")
    return int(mark)


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of format 1 with the names that options have now."""
    return _upgraded(config, "")


def _upgraded(section: Mapping[str, Any], at: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        path = f"{at}.{key}" if at else key
        name = OLD_OPTIONS.get(path, key)
        if name is not None:
            found[name] = _upgraded(value, path) if isinstance(value, Mapping) else value
    return found
