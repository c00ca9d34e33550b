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
    counts = {w.what: w.count for w in watched(scalars, Statistics(np.array([1]), arrays, {}))}
    assert counts == {
        "attention sink": 2,
        "residual sink": 3,
        "massive activations": 0,
        "NaN or infinity": 7,
        "a saturated gate": 2,
    }
