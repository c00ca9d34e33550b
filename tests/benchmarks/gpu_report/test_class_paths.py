"""Without a command line too, a variant may name any class by its path, a user's own among them."""

import functools

import pytest

from benchmarks.gpu_report.recipe import build
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.gated_norm import GatedNorm
from tests.checks.user_parts import Rectified, RunningMean, SquashedNorm

SIZE = {"architecture": {"d_model": 16, "n_layers": 1, "n_heads": 2, "ffn_hidden": 24}}


def test_axes_take_classes_by_path_with_options() -> None:
    parts = {
        "normalizer": {"class_path": "tests.checks.user_parts.Rectified"},
        "norm": {
            "class_path": "GatedNorm",
            "init_args": {
                "rank": 3,
                "norm": {"class_path": "tests.checks.user_parts.SquashedNorm", "init_args": {"scale": 0.7}},
            },
        },
        "head_norm": "tests.checks.user_parts.SquashedNorm",
        "feed_forward": "GELU",
        "optimizer": "torch.optim.SGD",
    }
    model = build({"class_path": "CausalLM", "init_args": SIZE | parts}, 11, 12)
    assert type(model) is CausalLM
    block = model.make_decoder().blocks[0]
    assert isinstance(block.attention.normalizer, Rectified)  # type: ignore[union-attr]
    norm = block.attention_norm.norm  # type: ignore[union-attr]
    assert isinstance(norm, GatedNorm)
    assert isinstance(norm.norm, SquashedNorm)
    assert (norm.down.out_features, norm.norm.scale) == (3, 0.7)


def test_a_mixer_by_path_is_built() -> None:
    section = {
        "class_path": "sinks.families.CausalLM",
        "init_args": SIZE | {"mixer": "tests.checks.user_parts.RunningMean"},
    }
    assert isinstance(build(section, 11, 12).make_decoder().blocks[0].attention, RunningMean)  # type: ignore[union-attr]


def test_an_option_of_a_family_that_has_an_axis_name_is_left_to_it() -> None:
    model = build({"class_path": "Gated", "init_args": SIZE | {"attention_gate": "headwise", "norm_rank": 2}}, 11, 12)
    assert isinstance(model.layers[0].norm, functools.partial)


def test_an_unknown_class_is_an_error_in_one_line() -> None:
    with pytest.raises(UserError, match=r"class nowhere\.Norm does not exist"):
        build({"class_path": "CausalLM", "init_args": SIZE | {"norm": "nowhere.Norm"}}, 11, 12)
