"""The variants of an ablation with as many parameters as its baseline, by the width of their feed-forward layers."""

import sys
from dataclasses import replace
from typing import Any

from sinks.cli.plan import PlanCLI
from sinks.cli.training import command_line
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.counting import parameters_by_kind

WIDTH = "model.architecture.ffn_hidden"


def parameters(model: CausalLM, width: int) -> int:
    """Of the model, with feed-forward layers of a given width."""
    architecture = replace(model.architecture, ffn_hidden=width)
    return sum(parameters_by_kind(model.meta_decoder(architecture)).values())


def width_for(model: CausalLM, count: int) -> int:
    """The feed-forward width at which a model's number of parameters is closest to `count`.

    Raises:
        UserError: if even a width of 1 has more.
    """
    first, second = parameters(model, 1), parameters(model, 2)
    if second == first:
        raise UserError("the feed-forward width changes no parameter: leave out equal_parameters")
    width = 1 + round((count - first) / (second - first))
    if width < 1:
        raise UserError(
            f"without feed-forward layers the model has {first - (second - first)} parameters already, more than "
            f"{count}: leave out equal_parameters"
        )
    return width


def with_equal_parameters(ablation: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The ablation, in which each of the named variants has the baseline's number of parameters; printed to stderr.

    A variant whose own arguments give the width keeps it.
    """
    baseline = str(ablation.get("baseline") or "baseline")
    model = _model(ablation, baseline)
    own = model.architecture.ffn_hidden
    count = parameters(model, own)
    print(f"{baseline}: {count} parameters, feed-forward width {own}", file=sys.stderr)
    variants = dict(ablation["variants"])
    for name in names:
        arguments = variants[name].get("arguments", {})
        if name == baseline or WIDTH in arguments:
            continue
        model = _model(ablation, name)
        try:
            width = width_for(model, count)
        except UserError as error:
            raise UserError(f"variant {name}: {error}") from None
        found = parameters(model, width)
        print(f"{name}: {found} parameters ({found / count - 1:+.3%}), feed-forward width {width}", file=sys.stderr)
        variants[name] = variants[name] | {"arguments": arguments | {WIDTH: width}}
    return ablation | {"variants": variants}


def _model(ablation: dict[str, Any], name: str) -> CausalLM:
    """A variant as it is configured; a number that it takes from another run does not change what it has."""
    variant = ablation["variants"][name]
    options = dict.fromkeys(variant.get("measured", {}), 1.0) | variant.get("arguments", {})
    files = [part for config in (variant["config"], *ablation["configs"]) for part in ("-c", config)]
    cli = command_line([*files, *(f"--{key}={value}" for key, value in options.items())], run=False, cli=PlanCLI)
    return cli.model
