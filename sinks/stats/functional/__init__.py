"""Definitions of the sink statistics, one idea a file; two pure functions a group.

`*_moments(batch tensors)` gives named sums of one batch, which add up over batches and ranks: names ending in `_max`
and `_min` are combined by maximum and minimum, all others by sum (`sinks.stats.moments`). `*_statistics(moments)` turns
totals into the statistics. B batch, T tokens, D channels, H heads. Terms are computed in float32; sums over tokens,
samples and batches in float64 where the device has it. Nothing synchronizes with the host and every shape is static, so
all of it traces under torch.compile.

Means are over tokens but token 0 unless stated. A statistic of nothing (T = 1) is NaN. NaN and infinite inputs are
counted in `nonfinite` and make what they touch NaN or infinite.
"""

from sinks.stats.functional.attention import (
    NYU_THRESHOLD,
    SINK_THRESHOLDS,
    attention_moments,
    attention_row_moments,
    attention_row_statistics,
    attention_statistics,
    key_mass_moments,
    key_mass_statistics,
)
from sinks.stats.functional.contribution import (
    contribution_moments,
    contribution_statistics,
    contribution_totals,
    contribution_values,
    projected_value_norms,
    signed_contribution,
    value_moments,
    value_statistics,
)
from sinks.stats.functional.energy import TOP_CHANNELS, energy_moments, energy_statistics
from sinks.stats.functional.gates import (
    CLOSED,
    attention_gate_moments,
    attention_gate_statistics,
    gate_magnitude_moments,
    gate_magnitude_statistics,
    norm_gate_moments,
    norm_gate_statistics,
    share_moments,
    share_statistics,
)
from sinks.stats.functional.histogram import (
    HISTOGRAM_BINS,
    HISTOGRAM_BINS_PER_OCTAVE,
    HISTOGRAM_OCTAVES,
    histogram_quantile,
    magnitude_bins,
    magnitude_histogram,
)
from sinks.stats.functional.kurtosis import kurtosis_moments, kurtosis_statistics, token_kurtosis
from sinks.stats.functional.massive import RELATIVE_CRITERIA, massive_moments, massive_statistics
from sinks.stats.functional.residual import (
    SINK_CONSISTENCY,
    SINK_SCORE,
    choose_sink_dimensions,
    extreme_moments,
    extreme_statistics,
    persistence_statistics,
    residual_moments,
    residual_statistics,
    token_median,
    top_permille_ratio,
)
from sinks.stats.functional.sink_dimensions import (
    bound_moments,
    bound_statistics,
    gain_at_sink,
    gain_statistics,
    output_share_moments,
    output_share_statistics,
    rescale_contribute_index,
    sink_dimension_moments,
    sink_dimension_statistics,
)

__all__ = [
    "HISTOGRAM_BINS",
    "HISTOGRAM_BINS_PER_OCTAVE",
    "HISTOGRAM_OCTAVES",
    "histogram_quantile",
    "magnitude_bins",
    "magnitude_histogram",
    "NYU_THRESHOLD",
    "SINK_THRESHOLDS",
    "attention_moments",
    "attention_statistics",
    "key_mass_moments",
    "key_mass_statistics",
    "attention_row_moments",
    "attention_row_statistics",
    "value_moments",
    "value_statistics",
    "projected_value_norms",
    "contribution_values",
    "contribution_totals",
    "signed_contribution",
    "contribution_moments",
    "contribution_statistics",
    "CLOSED",
    "attention_gate_moments",
    "attention_gate_statistics",
    "norm_gate_moments",
    "norm_gate_statistics",
    "gate_magnitude_moments",
    "gate_magnitude_statistics",
    "share_moments",
    "share_statistics",
    "SINK_SCORE",
    "SINK_CONSISTENCY",
    "token_median",
    "residual_moments",
    "residual_statistics",
    "top_permille_ratio",
    "persistence_statistics",
    "choose_sink_dimensions",
    "extreme_moments",
    "extreme_statistics",
    "RELATIVE_CRITERIA",
    "massive_moments",
    "massive_statistics",
    "kurtosis_moments",
    "kurtosis_statistics",
    "token_kurtosis",
    "TOP_CHANNELS",
    "energy_moments",
    "energy_statistics",
    "sink_dimension_moments",
    "sink_dimension_statistics",
    "output_share_moments",
    "output_share_statistics",
    "rescale_contribute_index",
    "gain_at_sink",
    "gain_statistics",
    "bound_moments",
    "bound_statistics",
]
