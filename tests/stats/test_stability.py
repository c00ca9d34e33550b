"""Stability statistics against plain loops, and on series with planted spikes."""

import math
import random
from statistics import median

import numpy as np
import pytest

from sinks.stats.stability import loss_spikes, rolling_median, stability_statistics


def series(steps: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [5 / (1 + i / 50) + generator.gauss(0, 0.03) for i in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 10, 11, 12, 57])
@pytest.mark.parametrize("window", [1, 3, 11])
def test_rolling_median(steps: int, window: int) -> None:
    values = series(steps)
    expected = []
    for i in range(steps):
        reach = min(window // 2, i, steps - 1 - i)
        expected.append(median(values[i - reach : i + reach + 1]))
    np.testing.assert_allclose(rolling_median(values, window), expected, rtol=1e-12)


def test_long_series_are_chunked_without_a_seam() -> None:
    values = series(9001)
    found = rolling_median(values)
    for i in (100, 4095, 4096, 4196, 4197, 8192, 8900):
        assert found[i] == pytest.approx(median(values[i - 100 : i + 101]), rel=1e-12)


def test_injected_spikes_are_counted_and_a_falling_loss_has_none() -> None:
    falling = [10 * math.exp(-i / 300) + 2 for i in range(2000)]
    assert not loss_spikes(falling).any()
    spiky = list(falling)
    for step in (0, 700, 701, 1999):
        spiky[step] += 0.5
    spiky[900] += 0.05
    spiky[1200] += 0.12
    # Step 0 and the last have no neighbors to be compared with.
    assert np.flatnonzero(loss_spikes(spiky)).tolist() == [700, 701, 1200]
    assert stability_statistics(spiky, [1.0])["spikes_per_10k"] == pytest.approx(15.0)


def test_a_window_without_a_center_is_rejected() -> None:
    with pytest.raises(ValueError, match="window is 200"):
        rolling_median([1.0], 200)


def test_gradient_norms() -> None:
    norms = [0.5, 2.0, 3.0, 0.9, 1.0, 1.5, 0.1, 0.2, 0.3, 4.0]
    found = stability_statistics([1.0] * 10, norms, clip=1.0)
    assert found["clip_crossings_per_10k"] == 4000
    assert found["clip_episodes"] == 3
    assert found["gradient_norm_p999"] == pytest.approx(np.quantile(norms, 0.999))
    assert found["gradient_norm_p999"] == pytest.approx(3.0 + 1.0 * 0.991)
    assert stability_statistics([1.0], [2.0, 2.0], clip=1.0)["clip_episodes"] == 1
    assert math.isnan(stability_statistics([1.0], norms)["clip_crossings_per_10k"])


def test_nonfinite_values_are_counted() -> None:
    loss = [2.0] * 300
    loss[150] = math.inf
    found = stability_statistics(loss, [1.0, math.inf], clip=1.0)
    assert found["nonfinite_loss"] == 1
    assert found["spikes_per_10k"] == pytest.approx(1e4 / 300)
    assert found["gradient_norm_p999"] == math.inf
    assert found["clip_crossings_per_10k"] == 5000
    loss[150] = math.nan
    found = stability_statistics(loss, [1.0, math.nan], clip=1.0)
    assert found["nonfinite_loss"] == found["nonfinite_gradient_norm"] == 1
    for name in ("spikes_per_10k", "gradient_norm_p999", "clip_crossings_per_10k", "clip_episodes"):
        assert math.isnan(found[name])


def test_an_empty_series_gives_nan() -> None:
    found = stability_statistics([], [], clip=1.0)
    assert found["steps"] == 0
    assert math.isnan(found["spikes_per_10k"])
    assert math.isnan(found["gradient_norm_p999"])
    assert math.isnan(found["clip_crossings_per_10k"])
