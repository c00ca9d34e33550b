"""Stability of a finished training period, from per-step series on the host (arXiv:2608.30320).

Series hold one value per step, without gaps: a subsampled series has other spikes and quantiles.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Series = Sequence[float] | NDArray[np.floating]

SPIKE_WINDOW = 201
SPIKE_MARGIN = 0.1
# Number of windows sorted at once.
_CHUNK = 4096


def rolling_median(series: Series, window: int = SPIKE_WINDOW) -> NDArray[np.float64]:
    """Median of the `window` values centered on each step; NaN if any of them is.

    Within half a window of either end the window shrinks equally on both sides, down to the step itself, so that a
    falling loss equals its own median everywhere.

    Raises:
        ValueError: if the window is not odd and positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}, but must be odd and positive to have a center: give e.g. {SPIKE_WINDOW}")
    values = np.asarray(series, dtype=np.float64)
    steps, half = len(values), window // 2
    medians = np.empty(steps)
    for step in [*range(min(half, steps)), *range(max(half, steps - half), steps)]:
        reach = min(step, steps - 1 - step)
        medians[step] = np.median(values[step - reach : step + reach + 1])
    for start in range(0, steps - 2 * half, _CHUNK):
        stop = min(start + _CHUNK, steps - 2 * half)
        windows = np.lib.stride_tricks.sliding_window_view(values[start : stop + 2 * half], window)
        medians[start + half : stop + half] = np.median(windows, axis=1)
    return medians


def loss_spikes(loss: Series, window: int = SPIKE_WINDOW, margin: float = SPIKE_MARGIN) -> NDArray[np.bool_]:
    """Which steps have a loss above the rolling median + margin; an infinite loss is a spike, NaN is not."""
    values = np.asarray(loss, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return values > rolling_median(values, window) + margin


def stability_statistics(
    loss: Series, gradient_norm: Series, clip: float | None = None, window: int = SPIKE_WINDOW
) -> dict[str, float]:
    """Stability of training from its loss (nats per token) and its gradient norm before clipping, step by step.

    Returns:
        steps: length of the loss series.
        nonfinite_loss, nonfinite_gradient_norm: number of NaN and infinite values.
        spikes_per_10k: 10000 / steps * steps with loss > centered 201-step rolling median + 0.1; NaN with a NaN loss.
        gradient_norm_p999: its 99.9th percentile, exact, linear between order statistics; NaN with a NaN.
        clip_crossings_per_10k: 10000 / steps * steps with gradient norm > clip; NaN without a clip, or with a NaN.
        clip_episodes: number of times it rose above the clip from at or below it, regardless of how long it stayed.
        The statistics of an empty series are NaN.
    """
    losses, norms = np.asarray(loss, dtype=np.float64), np.asarray(gradient_norm, dtype=np.float64)
    crossings = norms > (clip if clip is not None else math.nan)
    has_clip = clip is not None and len(norms) > 0 and not np.isnan(norms).any()
    spiky = len(losses) > 0 and not np.isnan(losses).any()
    return {
        "steps": float(len(losses)),
        "nonfinite_loss": float((~np.isfinite(losses)).sum()),
        "nonfinite_gradient_norm": float((~np.isfinite(norms)).sum()),
        "spikes_per_10k": 1e4 * float(loss_spikes(losses, window).mean()) if spiky else math.nan,
        "gradient_norm_p999": _quantile(norms, 0.999),
        "clip_crossings_per_10k": 1e4 * float(crossings.mean()) if has_clip else math.nan,
        "clip_episodes": float(np.diff(crossings.astype(np.int8), prepend=0).clip(0).sum()) if has_clip else math.nan,
    }


def _quantile(values: NDArray[np.float64], quantile: float) -> float:
    """Exact quantile, linear between order statistics; NaN for an empty series or with a NaN, inf where it is one."""
    if len(values) == 0 or np.isnan(values).any():
        return math.nan
    ordered = np.sort(values)
    place = quantile * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(low if low == high else low + (high - low) * (place - math.floor(place)))
