"""Definitions of the sink statistics, one topic per file; two pure functions per group.

`*_accumulators(batch tensors)` gives named sums of one batch, which add up over batches and ranks: names ending in
`_max` and `_min` are combined by maximum and minimum, all others by sum (`sinks.stats.accumulators`).
`*_statistics(accumulators)` turns totals into the statistics. B batch, T tokens, D channels, H heads. Terms are
computed in float32; sums over tokens, samples and batches in float64 where the device has it. Nothing synchronizes with
the host and every shape is static, so all of it traces under torch.compile.

Means exclude token 0 unless stated. A statistic of an empty set (T = 1) is NaN. Every group counts NaN and infinite
inputs in `nonfinite`; whatever depends on them becomes NaN or infinite.
"""

from sinks.stats.functional.attention import (
    SINK_THRESHOLDS,
    attention_accumulators,
    attention_row_accumulators,
    attention_row_statistics,
    attention_statistics,
    key_mass_accumulators,
    key_mass_statistics,
    uniform_first_token_mass,
)
from sinks.stats.functional.contribution import (
    contribution_accumulators,
    contribution_statistics,
    projected_value_norms,
    value_accumulators,
    value_statistics,
)
from sinks.stats.functional.energy import TOP_CHANNELS, energy_accumulators, energy_statistics, largest_channels
from sinks.stats.functional.gates import (
    attention_gate_accumulators,
    attention_gate_statistics,
    gate_magnitude_accumulators,
    gate_magnitude_statistics,
    norm_gate_accumulators,
    norm_gate_statistics,
    share_accumulators,
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
from sinks.stats.functional.kurtosis import kurtosis_accumulators, kurtosis_statistics, token_kurtosis
from sinks.stats.functional.massive import (
    RELATIVE_CRITERIA,
    massive_accumulators,
    massive_statistics,
    massive_tokens,
    sample_median,
)
from sinks.stats.functional.residual import (
    choose_sink_dimensions,
    mean_abs,
    persistence_statistics,
    residual_accumulators,
    residual_statistics,
    token_median,
    token_median_and_largest,
    top_permille_ratio,
)
from sinks.stats.functional.router import router_accumulators, router_statistics
from sinks.stats.functional.routes import (
    RouteInputs,
    effective_scale,
    gate_gain,
    neighbor_accumulators,
    neighbor_statistics,
    relative_value_norms,
    route_accumulators,
    route_statistics,
    routes,
    scale_accumulators,
    scale_statistics,
    with_own_relative,
)
from sinks.stats.functional.sink_dimensions import (
    bound_accumulators,
    bound_statistics,
    gain_at_sink,
    output_share_accumulators,
    output_share_statistics,
    rescale_contribute_index,
    sink_dimension_accumulators,
    sink_dimension_statistics,
)
from sinks.stats.functional.update import update_accumulators, update_statistics
