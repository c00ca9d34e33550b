"""Paired differences over seeds: intervals, the paired t test and its power, and Holm's correction.

All from one integral. With S = sqrt(chi2_df / df), the tail of a t variable shifted by `shift` is
P(|T| >= t) = E[Phi(shift - t S) + Phi(-shift - t S)]. At shift 0 it is the two-sided p value of Student's t test; at
shift = effect / sd * sqrt(n) and df = n - 1 it is the test's power (Johnson, Kotz, Balakrishnan: Continuous Univariate
Distributions 2, chapter 31).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sinks.stats.bootstrap import interval

ALPHA = 0.05
POWER = 0.8
# From so many seeds on the interval is a bootstrap's: with fewer, resampling draws too few different samples.
BOOTSTRAP_FROM = 8
POINTS = 4001
# Above this many seeds an effect counts as out of reach.
MOST_SEEDS = 100_000


def tail(t: float, df: int, shift: float = 0.0) -> float:
    """P(|T| >= t) for T = (Z + shift) / S: Student's t, not central where there is a shift.

    Args:
        t: at least 0.
        df: degrees of freedom, at least 1.
        shift: mean of Z.
    """
    # In u = log S the density falls off on both sides, and the trapezoid rule is exact to rounding.
    beyond = 12 / math.sqrt(2 * df)
    u = torch.linspace(-40 / df - beyond, 0.5 * math.log(1 + 80 / df) + beyond, POINTS, dtype=torch.float64)
    density = torch.exp(df * (u - u.exp().square() / 2 + 0.5))
    scaled = t * u.exp()
    outside = torch.special.ndtr(shift - scaled) + torch.special.ndtr(-shift - scaled)
    return ((density * outside).sum() / density.sum()).item()


def critical(df: int, alpha: float = ALPHA) -> float:
    """The t that a two-sided test at `alpha` must exceed."""
    return _smallest(lambda t: tail(t, df) <= alpha)


def power(effect: float, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """Probability that the paired t test of so many seeds finds an effect.

    Args:
        effect: true mean of the differences.
        sd: of one difference.
        seeds: at least 2.
        alpha: level of the two-sided test.
    """
    return tail(critical(seeds - 1, alpha), seeds - 1, abs(effect) / sd * math.sqrt(seeds))


def seeds_needed(effect: float, sd: float, wanted: float = POWER, alpha: float = ALPHA) -> int | None:
    """The fewest seeds that find an effect with the wanted power; None above `MOST_SEEDS`."""
    low, high = 1, 2
    while power(effect, sd, high, alpha) < wanted:
        if high == MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, sd, middle, alpha) < wanted else (low, middle)
    return high


def smallest_effect(sd: float, seeds: int, wanted: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest effect that so many seeds find with the wanted power: what they can see."""
    limit = critical(seeds - 1, alpha)
    return sd / math.sqrt(seeds) * _smallest(lambda shift: tail(limit, seeds - 1, shift) >= wanted)


def _smallest(holds: Callable[[float], bool]) -> float:
    """The smallest positive number from which on something holds."""
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Paired:
    """Differences to the baseline's run of the same seed.

    Args:
        mean: over the seeds.
        sd: of one difference, n - 1 in the denominator; None for one seed.
        low: of the 95 % interval of the mean: Student's t, from 8 seeds on a bootstrap's; None for one seed.
        high: of that interval.
        p: of the two-sided paired t test; None for one seed.
        n: number of seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Paired | None":
        """Of one difference per seed; None if there is none."""
        values = torch.tensor(differences, dtype=torch.float64)
        n = len(values)
        if n == 0:
            return None
        mean = values.mean().item()
        if n == 1:
            return cls(mean, None, None, None, None, 1)
        sd = values.std().item()
        error = sd / math.sqrt(n)
        if n >= BOOTSTRAP_FROM:
            found = interval(values, torch.ones_like(values), seed=0)
            low, high = found["low"], found["high"]
        else:
            half = critical(n - 1) * error
            low, high = mean - half, mean + half
        return cls(mean, sd, low, high, tail(abs(mean) / error, n - 1) if error else float(mean == 0), n)


def pooled_sd(found: Sequence[Paired]) -> tuple[float, int] | None:
    """Standard deviation of a difference from several sets of them, and its degrees of freedom; None without any."""
    known = [(each.sd, each.n - 1) for each in found if each.sd is not None]
    degrees = sum(df for _, df in known)
    return (math.sqrt(sum(sd**2 * df for sd, df in known) / degrees), degrees) if degrees else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
