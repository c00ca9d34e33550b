"""Power, intervals and tests of paired differences, against published numbers and tables of Student's t."""

import math

import pytest
import torch

from sinks.stats.paired import Paired, critical, holm, pooled_sd, power, seeds_needed, smallest_effect, tail


@pytest.mark.parametrize(
    ("sd", "seeds"),
    [(0.0056, [30, 12, 5]), (0.003, [10, 6, 3]), (0.002, [6, 4, 3]), (0.001, [4, 3, 3])],
)
def test_seeds_for_a_power_of_80_percent(sd: float, seeds: list[int]) -> None:
    """An earlier table of these had 29 in place of 30, where the power is 0.7953 (scipy's noncentral t agrees)."""
    assert [seeds_needed(effect, sd) for effect in (0.003, 0.005, 0.01)] == seeds


@pytest.mark.parametrize(
    ("df", "alpha", "t"),
    [(1, 0.05, 12.70620), (2, 0.05, 4.302653), (5, 0.05, 2.570582), (30, 0.05, 2.042272), (1, 0.001, 636.6192),
     (10_000, 0.05, 1.960201), (9, 0.01, 3.249836)],
)  # fmt: skip
def test_critical_values_are_those_of_the_tables(df: int, alpha: float, t: float) -> None:
    assert critical(df, alpha) == pytest.approx(t, rel=1e-6)
    assert tail(t, df) == pytest.approx(alpha, rel=1e-5)


def test_one_and_two_degrees_of_freedom_have_closed_forms() -> None:
    for t in (0.0, 0.3, 2.0, 50.0, 1e4):
        assert tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)
        assert tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)


def test_power_is_what_simulated_differences_give() -> None:
    torch.manual_seed(0)
    drawn = 0.004 + 0.0056 * torch.randn(200_000, 6, dtype=torch.float64)
    t = drawn.mean(1) / (drawn.std(1) / math.sqrt(6))
    assert power(0.004, 0.0056, 6) == pytest.approx((t.abs() > critical(5)).double().mean().item(), abs=0.004)
    assert power(-0.004, 0.0056, 6) == power(0.004, 0.0056, 6)
    assert power(0.0, 1.0, 6) == pytest.approx(0.05, rel=1e-6)
    assert power(0.003, 0.0056, 29) == pytest.approx(0.7952508086497901, abs=1e-12)  # scipy.stats.nct


def test_the_smallest_visible_effect_is_found_with_the_wanted_power() -> None:
    for seeds in (2, 3, 10, 200):
        assert power(smallest_effect(0.0056, seeds, 0.9), 0.0056, seeds) == pytest.approx(0.9, rel=1e-6)
    assert smallest_effect(0.0056, 3) == pytest.approx(0.02, abs=0.003)  # "about .02"
    assert seeds_needed(1e-7, 1.0) is None
    found = seeds_needed(0.01, 1.0)
    assert found is not None
    assert abs(found - (1.959964 + 0.841621) ** 2 / 0.01**2) < 3  # the normal limit, 78489


def test_an_interval_is_students_and_from_eight_seeds_on_a_bootstraps() -> None:
    found = Paired.of([0.001, 0.003, 0.005])
    assert found is not None
    assert (found.mean, found.sd, found.n) == (pytest.approx(0.003), pytest.approx(0.002), 3)
    half = 4.302653 * 0.002 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.003 - half), pytest.approx(0.003 + half))
    t = 0.003 / 0.002 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    many = Paired.of([0.0] * 7 + [0.8])
    assert many is not None
    assert many.low == 0  # a resample never leaves the values; Student's interval would reach below 0
    assert Paired.of([]) is None
    one = Paired.of([0.1])
    assert one is not None
    assert (one.mean, one.sd, one.low, one.high, one.p) == (pytest.approx(0.1), None, None, None, None)
    same = Paired.of([0.1, 0.1])
    assert same is not None
    assert same.p == 0


def test_pooled_by_degrees_of_freedom() -> None:
    sets = [Paired.of(values) for values in ([0.0, 2.0], [0.0, 3.0, 6.0], [5.0])]
    assert pooled_sd([s for s in sets if s]) == (pytest.approx(math.sqrt((2 * 1 + 9 * 2) / 3)), 3)
    assert pooled_sd([s for s in sets[2:] if s]) is None


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
