"""Axes of an ablation: every variant with every value."""

from pathlib import Path
from typing import Any

import pytest

from sinks.cli.axes import with_axes
from sinks.errors import UserError

AXES: dict[str, Any] = {
    "lr": {"x1": {"scaled": {"lr": 1}}, "x2": {"scaled": {"lr": 2}}},
    "rank": {"4": {"norm_rank": 4}, "8": {"norm_rank": 8}},
}


def expanded(variants: dict[str, Any], axes: dict[str, Any] = AXES) -> dict[str, Any]:
    return with_axes(Path("f"), {"axes": axes, "variants": variants})["variants"]


def test_every_variant_has_every_combination() -> None:
    gated = {"label": "Gated norm", "short": "Gated", "arguments": {"a": 0}, "config": "c"}
    found = expanded({"gated": gated, "plain": {"without": ["rank"]}, "bare": {"without": ["rank", "lr"]}})
    assert list(found) == [
        "gated-lr-x1-rank-4",
        "gated-lr-x1-rank-8",
        "gated-lr-x2-rank-4",
        "gated-lr-x2-rank-8",
        "plain-lr-x1",
        "plain-lr-x2",
        "bare",
    ]
    assert found["gated-lr-x2-rank-8"] == {
        "label": "Gated norm, lr x2, rank 8",
        "short": "Gated, lr x2, rank 8",
        "arguments": {"a": 0, "norm_rank": 8},
        "scaled": {"lr": 2},
        "config": "c",
        "of": "Gated norm",
        "at": {"lr": "x2", "rank": "8"},
    }
    halved = {"v": {"scaled": {"lr": 0.5, "clip": 3}, "without": ["rank"]}}
    assert expanded(halved)["v-lr-x2"]["scaled"] == {"lr": 1.0, "clip": 3}
    assert found["plain-lr-x1"] == {
        "label": "plain, lr x1", "scaled": {"lr": 1}, "of": "plain", "at": {"lr": "x1"},
    }  # fmt: skip
    assert found["bare"] == {}
    assert gated["arguments"] == {"a": 0}


def test_what_a_variant_is_compared_with_is_at_the_same_point() -> None:
    found = expanded({"plain": {"without": ["rank"], "against": "plain"}, "gated": {"against": "plain"}})
    assert found["plain-lr-x1"]["against"] == "plain-lr-x1"
    assert found["gated-lr-x2-rank-8"]["against"] == "plain-lr-x2"


def test_without_axes_an_ablation_is_as_it_is() -> None:
    variants = {"a": {"config": "c"}}
    assert with_axes(Path("f"), {"variants": variants}) == {"variants": variants}


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="f: variant a is without 'rate': choose among lr, rank"):
        expanded({"a": {"without": ["rate"]}})
    for values in ({}, {"x1": {}}, {"x1": 3}):
        with pytest.raises(UserError, match=r"f: axis lr is .*, but must map labels to options"):
            expanded({"a": {}}, {"lr": values})
