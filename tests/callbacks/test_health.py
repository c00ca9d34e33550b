"""Notes are made when something happens, and only then."""

import numpy as np
import pytest

from sinks.callbacks.health import Watch, watched
from sinks.record import Statistics


@pytest.mark.parametrize(
    ("before", "count", "expected"),
    [
        (0, 0, None),
        (0, 12, "attention sink formed in 12 of 24 heads"),
        (12, 13, None),
        (6, 12, "attention sink now in 12 of 24 heads"),
        (12, 0, "attention sink gone from all heads"),
    ],
)
def test_a_note_for_what_forms_doubles_or_vanishes(before: int, count: int, expected: str | None) -> None:
    assert Watch(count, 24, "attention sink", "heads").note(before) == expected


def test_what_is_counted() -> None:
    arrays = {
        "attention/first_token_mass": np.array([[[0.31, 0.29], [0.9, 0.0]]]),
        "attention/gate_mean": np.array([[[0.01, 0.5], [0.99, 0.2]]]),
        "residual/sink_score": np.ones((1, 5)),
    }
    scalars = {"residual/sink_sites": 0.6, "residual/massive_activations": 0.0, "residual/nonfinite": 7.0}
    statistics = Statistics(np.array([1]), arrays, {"attention": ["blocks.0.attention", "blocks.1.attention"]})
    counts = {w.what: w.count for w in watched(scalars, statistics)}
    assert counts == {
        "attention sink": 2,
        "residual sink": 3,
        "massive activations": 0,
        "NaN or infinity": 7,
        "a saturated gate": 2,
    }


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1.0, "a saturated gate formed in 2 of 4 heads (blocks.1.attention)"),
        (2.0, "a saturated gate formed in 1 of 4 heads (blocks.1.attention)"),
        (np.inf, None),
    ],
)
def test_saturated_gates_are_named_by_layer(limit: float, expected: str | None) -> None:
    arrays = {"attention/gate_mean": np.array([[[0.3, 0.5], [0.99, 0.01]]])}
    statistics = Statistics(np.array([1]), arrays, {"attention": ["blocks.0.attention", "blocks.1.attention"]})
    assert [w.note(0) for w in watched({}, statistics, limit)] == ([] if expected is None else [expected])
