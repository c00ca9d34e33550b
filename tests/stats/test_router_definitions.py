"""Statistics of routers against numbers known by hand."""

import math

import pytest
import torch

from sinks.stats import functional


def test_load_and_entropy_are_those_known_by_hand() -> None:
    probabilities = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]])
    chosen = torch.tensor([[[0, 1], [0, 2], [0, 1]]])
    logits = (probabilities + 1e-30).log()
    found = functional.router_statistics(functional.router_accumulators(logits, chosen))
    assert found["load"].tolist() == pytest.approx([2.0, 4 / 3, 2 / 3, 0.0])
    assert float(found["load_max"]) == 2.0
    assert float(found["unused"]) == 0.25
    assert float(found["entropy"]) == pytest.approx((math.log(2) + math.log(4)) / 3)
    assert float(found["entropy_share"]) == pytest.approx(0.5)


def test_of_one_expert_the_share_is_not_defined() -> None:
    found = functional.router_statistics(
        functional.router_accumulators(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1, dtype=torch.int64))
    )
    assert float(found["load_max"]) == 1.0
    assert found["entropy_share"].isnan()
