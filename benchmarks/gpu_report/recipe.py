"""The suite's YAML files read without its command line, for machines that have PyYAML but no jsonargparse."""

from typing import Any

import yaml

import sinks.families
import sinks.models.feed_forward
from benchmarks.gpu_report.stage_context import ROOT
from sinks.errors import UserError
from sinks.families import CausalLM, Optimization
from sinks.families.causal_lm import Execution
from sinks.models.decoder import Architecture

EXPERIMENTS = ROOT / "experiments"
Section = dict[str, Any]


def layered(*files: str) -> dict[str, Section]:
    """Sections of files below experiments/, each laid over those before it.

    Raises:
        UserError: if a file is not there.
    """
    merged: dict[str, Section] = {}
    for file in files:
        path = EXPERIMENTS / file
        if not path.is_file():
            raise UserError(f"there is no {path}: run the report from a checkout of the project")
        merged = over(merged, yaml.safe_load(path.read_text(encoding="utf-8")))
    return merged


def over(below: Section, above: Section) -> Section:
    """`above` laid over `below`, mapping by mapping."""
    both = {key: over(below[key], above[key]) for key in above if _mappings(below.get(key), above[key])}
    return below | above | both


def _mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def architecture(section: Section, **changes: Any) -> Architecture:
    """The widths of a `model` section."""
    return Architecture(**section["init_args"]["architecture"] | changes)


def build(section: Section, vocab_size: int, context_length: int, **changes: Any) -> CausalLM:
    """The family that a `model` section names.

    Args:
        section: `class_path`, and `init_args` with at least `architecture`.
        vocab_size: number of token ids.
        context_length: tokens seen.
        changes: constructor arguments that replace the section's.
    """
    arguments = dict(section["init_args"])
    dataclasses = {"architecture": Architecture, "optimization": Optimization, "execution": Execution}
    for name, kind in dataclasses.items():
        if name in arguments:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments[name].items()}
            arguments[name] = kind(**values)
    if "feed_forward" in arguments:
        arguments["feed_forward"] = getattr(sinks.models.feed_forward, arguments["feed_forward"])
    family: type[CausalLM] = getattr(sinks.families, section["class_path"])
    return family(vocab_size, context_length, **arguments | changes)
