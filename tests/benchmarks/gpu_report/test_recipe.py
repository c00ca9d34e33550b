"""The YAML files read without the command line, and variants of equal size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_report.recipe import EXPERIMENTS, build, layered, over
from benchmarks.gpu_report.step import parameters, widths
from sinks.cli.training import command_line
from sinks.models.rope import Frequencies

ADDING_PARAMETERS = ("gated-both", "gated-norm", "gated-attention", "learnable-sink", "pre-affine")


@pytest.mark.parametrize("variant", ["baseline", "gated-both", "learnable-sink", "dyt"])
def test_the_recipe_is_what_the_command_line_makes_of_the_same_files(
    variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [f"variants/{variant}.yaml", "models/60m.yaml"]
    own = build(layered(*files)["model"], 500, 64)
    arguments = [f"--config={EXPERIMENTS / file}" for file in [*files, "data/backcopy.yaml", "trainers/cpu.yaml"]]
    theirs = command_line([*arguments, f"--run.dir={tmp_path}"], run=False).model
    assert type(own) is type(theirs)
    assert own.optimization == theirs.optimization
    # The command line wraps a class that is a default.
    one, other = (model.architecture.rope_frequencies(64, 1e4).values() for model in (own, theirs))
    assert torch.equal(one, other)
    assert replace(own.architecture, rope_frequencies=Frequencies) == replace(
        theirs.architecture, rope_frequencies=Frequencies
    )
    expected = build(layered(*files)["model"], theirs.vocab_size, theirs.context_length)
    assert parameters(expected) == parameters(theirs)


def test_later_files_win_mapping_by_mapping() -> None:
    assert over({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": 4}) == {"a": {"x": 1, "y": 3}, "b": 1, "c": 4}


@pytest.mark.parametrize("width", widths(dry=False), ids=lambda width: width.name)
def test_variants_have_the_baselines_number_of_parameters(width: Any) -> None:
    baseline = parameters(width.variant("baseline"))
    for name in ADDING_PARAMETERS:
        model = width.matched(name)
        assert abs(parameters(model) / baseline - 1) < 0.01, name
        assert model.architecture.ffn_hidden % 64 == 0
