"""Reads the suite's YAML files without its command line, for machines without jsonargparse."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu_report.stage_context import ROOT
from sinks.data.module import TokenData
from sinks.errors import UserError
from sinks.families import CausalLM, Optimization
from sinks.models.decoder import Architecture
from sinks.models.execution import Execution
from sinks.runs import train

EXPERIMENTS = ROOT / "experiments"
Section = dict[str, Any]
# Modules in which short names are looked up, and the class arguments of a model.
MODELS = (
    "norms", "gains", "layer_norm", "seed_norm", "derf", "gated_norm", "clips", "normalizers", "attention_gates",
    "exclusion", "key_gates", "attention", "feed_forward",
)  # fmt: skip
SUITE = ["sinks.families", "sinks.families.optimizers", *(f"sinks.models.{name}" for name in MODELS)]
AXES = (
    "optimizer", "mixer", "normalizer", "attention_gate", "exclusion", "key_gate", "norm", "feed_forward_norm",
    "head_norm", "output_norm",
    "residual_clip", "feed_forward",
)  # fmt: skip


def layered(*files: str) -> dict[str, Section]:
    """Sections of files below experiments/, later files overriding earlier ones.

    Raises:
        UserError: if a file does not exist.
    """
    merged: dict[str, Section] = {}
    for file in files:
        path = EXPERIMENTS / file
        if not path.is_file():
            raise UserError(f"{path} does not exist: run the report from a checkout of the project")
        merged = over(merged, yaml.safe_load(path.read_text(encoding="utf-8")))
    return merged


def over(below: Section, above: Section) -> Section:
    """`below` updated by `above`, recursively."""
    both = {key: over(below[key], above[key]) for key in above if _mappings(below.get(key), above[key])}
    return below | above | both


def _mappings(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def architecture(section: Section, **changes: Any) -> Architecture:
    """The architecture of a `model` section."""
    return Architecture(**section["init_args"]["architecture"] | changes)


def build(section: Section, vocab_size: int, context_length: int, **changes: Any) -> CausalLM:
    """The model of a `model` section, given by a family's name or a class path.

    Args:
        section: `class_path`, and `init_args` with at least `architecture`.
        vocab_size: number of token ids.
        context_length: tokens seen.
        changes: constructor arguments that replace the section's.

    Raises:
        UserError: if the class does not exist.
    """
    arguments, family = dict(section["init_args"]), class_of(section["class_path"])
    # A named family may have an option of a name that is an axis of `CausalLM`.
    own = () if family is CausalLM else inspect.signature(family).parameters
    dataclasses = {"architecture": Architecture, "optimization": Optimization, "execution": Execution}
    for name, value in arguments.items():
        if name in dataclasses:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
            arguments[name] = dataclasses[name](**values)
        elif name in AXES and name not in own:
            arguments[name] = part(value)
    return family(vocab_size, context_length, **arguments | changes)


def train_sections(
    folder: Path, sections: dict[str, Section], data: TokenData, compile: bool, callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> Section:  # fmt: skip
    """Train the model of a recipe into an empty run folder, without checkpoints; return its summary.

    Args:
        folder: of the run.
        sections: `model` and `trainer` of a configuration.
        data: rows.
        compile: whether blocks are compiled.
        callbacks: in addition to the suite's.
        trainer: options in addition to the recipe's.
    """
    execution = Execution(compile=compile)
    model = build(sections["model"], data.vocab_size, data.context_length, execution=execution)
    options = {"enable_checkpointing": False} | sections["trainer"] | trainer
    summary = train(model, data, folder, max_steps=options["max_steps"], trainer=options, callbacks=callbacks)
    assert summary is not None  # no recipe limits the time
    return summary


def part(value: str | Section) -> Any:
    """A class, or a partial of one with its options, from its name or from `class_path` and `init_args`."""
    if isinstance(value, str):
        return class_of(value)
    options = {
        name: part(option) if isinstance(option, dict) and "class_path" in option else option
        for name, option in value.get("init_args", {}).items()
    }
    return functools.partial(class_of(value["class_path"]), **options)


def class_of(path: str) -> Any:
    """A class by its import path, or by its short name if it is one of the suite's.

    Raises:
        UserError: if it does not exist.
    """
    module, _, name = path.rpartition(".")
    for place in [module] if module else SUITE:
        with contextlib.suppress(ImportError):
            if hasattr(importlib.import_module(place), name):
                return getattr(importlib.import_module(place), name)
    raise UserError(f"class {path} does not exist: give an import path, or the name of a class of the suite")
