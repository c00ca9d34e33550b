"""An ablation at one of the scales that its file offers: other configurations, and numbers that go with them."""

from pathlib import Path
from typing import Any

from sinks.errors import UserError
from sinks.record.yaml_file import read_yaml


def at_scale(file: Path, ablation: dict[str, Any], scale: str | None) -> dict[str, Any]:
    """The ablation with the configurations, steps and numbers of a scale.

    A scale has `configs`, and perhaps `steps` and `seeds`; they replace those of the file. `scaled` of a variant
    are factors of its own arguments, or else of numbers in these configurations. `published` are numbers that hold
    at the published size alone: where a scale is `as_published`, they replace what is scaled or measured. `{scale}` in
    the ablation's `commands` becomes the scale's name.

    Args:
        file: of the ablation, for messages.
        ablation: its content.
        scale: one that it offers; by default its first one.

    Raises:
        UserError: if it offers no such scale, or a scaled number is not in the configurations.
    """
    scales: dict[str, Any] = ablation.get("scales") or {}
    if not scales:
        if scale is not None:
            raise UserError(f"scale is {scale!r}, but {file} has one scale only: leave it out")
        chosen: dict[str, Any] = {}
        resolved = dict(ablation)
    else:
        name = scale or next(iter(scales))
        if name not in scales:
            raise UserError(f"scale {name!r} is not in {file}: choose among {', '.join(scales)}")
        chosen = scales[name]
        resolved = {key: value for key, value in ablation.items() if key != "scales"}
        resolved |= {key: chosen[key] for key in ("configs", "steps", "seeds") if key in chosen}
        resolved["name"] = f"{ablation['name']}-{name}"
        resolved["title"] = f"{ablation.get('title', ablation['name'])}, {name}"
        if "commands" in ablation:
            resolved["commands"] = [command.replace("{scale}", name) for command in ablation["commands"]]
    resolved["variants"] = {
        variant: _variant(file, variant, about or {}, resolved, bool(chosen.get("as_published")))
        for variant, about in ablation["variants"].items()
    }
    return resolved


def _variant(
    file: Path, name: str, about: dict[str, Any], ablation: dict[str, Any], as_published: bool
) -> dict[str, Any]:
    rest = {key: value for key, value in about.items() if key not in ("scaled", "published")}
    published = about.get("published", {}) if as_published else {}
    if published:
        rest = {key: value for key, value in rest.items() if key not in ("needs", "measured")}
    given = rest.get("arguments", {})
    own = published | {
        option: factor * (given[option] if option in given else _number(file, name, option, ablation))
        for option, factor in about.get("scaled", {}).items()
        if option not in published
    }
    return rest | {"arguments": rest.get("arguments", {}) | own} if own else rest


def _number(file: Path, name: str, option: str, ablation: dict[str, Any]) -> float:
    """An option's value in the configurations of an ablation, the last of which wins."""
    found: Any = None
    for config in ablation["configs"]:
        section: Any = read_yaml(Path(config))
        for word in option.split("."):
            section = section if isinstance(section, dict) else {}
            section = section[word] if word in section else (section.get("init_args") or {}).get(word)
        found = section if section is not None else found
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise UserError(
            f"{file}: variant {name} scales {option}, which is {found!r} in the ablation's configs: give a number there"
        )
    return float(found)
