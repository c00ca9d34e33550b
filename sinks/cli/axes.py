"""An ablation whose file has axes: each of its variants with each value of each axis."""

import itertools
from pathlib import Path
from typing import Any

from sinks.errors import UserError


def with_axes(file: Path, ablation: dict[str, Any]) -> dict[str, Any]:
    """The ablation with a variant for every combination, named e.g. `baseline-lr-x2`.

    `axes` maps the name of an axis to `values`: a label to the options it sets, e.g. `{x2: {model.optimization.lr:
    6e-3}}`. Factors of numbers in the configurations are `scaled`: `{x2: {scaled: {model.optimization.lr: 2}}}`. A
    variant may leave an axis out: `without: [alpha]`. What it is compared with, e.g. `against: baseline`, is that at
    the same point. Each says which variant of the file it is of (`of`) and at which point (`at`), for the report.

    Raises:
        UserError: if an axis has no values, or a variant leaves out one that is not there.
    """
    axes: dict[str, Any] = ablation.get("axes") or {}
    for axis, values in axes.items():
        if not values or not all(isinstance(options, dict) and options for options in values.values()):
            raise UserError(f"{file}: axis {axis} is {values!r}, but must map labels to options: see lr-sweep.yaml")
    variants: dict[str, Any] = {}
    for name, about in ablation["variants"].items():
        about = about or {}
        without = about.get("without", [])
        if unknown := set(without) - set(axes):
            raise UserError(f"{file}: variant {name} is without {unknown.pop()!r}: choose among {', '.join(axes)}")
        own = [[(axis, *item) for item in values.items()] for axis, values in axes.items() if axis not in without]
        for point in itertools.product(*own):
            found = _at(name, about, point)
            if "against" in about:
                found["against"] = _name(about["against"], point, ablation["variants"])
            variants[_name(name, point)] = found
    rest = {key: value for key, value in ablation.items() if key != "axes"}
    return rest | {"variants": variants}


def _name(
    variant: str, point: tuple[tuple[str, str, dict[str, Any]], ...], variants: dict[str, Any] | None = None
) -> str:
    """Of a variant at a point; of axes that it is without, if the variants are given, it has no part of the name."""
    without = ((variants or {}).get(variant) or {}).get("without", [])
    return "-".join([variant, *(f"{axis}-{label}" for axis, label, _ in point if axis not in without)])


def _at(name: str, about: dict[str, Any], point: tuple[tuple[str, str, dict[str, Any]], ...]) -> dict[str, Any]:
    """A variant at one point of its axes."""
    found = {key: value for key, value in about.items() if key != "without"}
    if point:
        found |= {"of": about.get("label", name), "at": {axis: label for axis, label, _ in point}}
    for axis, label, options in point:
        plain = {option: value for option, value in options.items() if option != "scaled"}
        factors = options.get("scaled", {})
        if "published" in found:
            # The point holds at the published size as well: its own number in place of one, or times the same factor.
            found["published"] = {
                option: plain.get(option, value) * factors[option] if option in factors else plain.get(option, value)
                for option, value in found["published"].items()
            }
        for key, added in (("arguments", plain), ("scaled", factors)):
            before = found.get(key, {})
            if key == "scaled":
                added = {option: factor * before.get(option, 1) for option, factor in added.items()}
            if added:
                found[key] = before | added
        for key in ("label", "short"):
            if key == "label" or key in found:
                found[key] = f"{found.get(key, name)}, {axis} {label}"
    return found
