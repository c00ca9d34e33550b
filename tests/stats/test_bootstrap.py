"""Intervals of a bootstrap over units."""

import numpy as np
import pytest
import torch

from sinks.stats.bootstrap import as_text, interval


def test_an_interval_of_units_of_different_sizes() -> None:
    """Against numpy: the mean over tokens, not over units."""
    torch.manual_seed(0)
    sizes = torch.randint(1, 30, (12,)).double()
    sums = sizes * (sizes / 10 + torch.randn(12, dtype=torch.float64))  # large units differ from small ones
    found = interval(sums, sizes, 0)
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 12, (20_000, 12))
    means = sums.numpy()[drawn].sum(1) / sizes.numpy()[drawn].sum(1)
    assert found["mean"] == pytest.approx((sums.sum() / sizes.sum()).item(), rel=1e-12)
    spread = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    assert found["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.03 * spread)
    assert found["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.03 * spread)
    assert interval(sums, sizes, 0) == found != interval(sums, sizes, 1)


def test_units_without_a_token_count_nothing() -> None:
    sums, counts = torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([2.0, 0.0, 0.0])
    found = interval(sums, counts.double(), 0)
    assert found == {"mean": 2.0, "low": None, "high": None}  # of a single unit there is no interval
    two = interval(torch.tensor([4.0, 0.0, 9.0]).double(), torch.tensor([2.0, 0.0, 3.0]).double(), 0)
    assert two == {"mean": pytest.approx(2.6), "low": 2.0, "high": 3.0}


def test_text_of_an_interval() -> None:
    assert as_text({"mean": 0.12345, "low": -0.1, "high": 0.3}, 3) == "+0.123 [-0.100, +0.300]"
    assert as_text({"mean": 0.12345, "low": None, "high": None}, 2) == "+0.12"
