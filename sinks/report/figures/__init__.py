"""Figures: from run folders to a matplotlib Figure, without pyplot state; used by the report and the notebooks."""

from sinks.report.figures.dimensions import sorted_dimensions
from sinks.report.figures.dissociation import double_dissociation
from sinks.report.figures.maps import attention_map_figure, first_token_map, first_token_maps
from sinks.report.figures.measured import probed_places, probes_of, quantization, quantization_of_one, quantized, roles
from sinks.report.figures.residual import MEASURES, dimension_maps, order_of_dimensions, over_layers, token_map
from sinks.report.figures.routes import routes
from sinks.report.figures.style import to_png
from sinks.report.figures.training import (
    first_token_mass_over_training,
    over_training,
    sink_curves,
    sink_score_over_training,
)

__all__ = [
    "double_dissociation",
    "over_training",
    "first_token_mass_over_training",
    "sink_score_over_training",
    "first_token_maps",
    "first_token_map",
    "routes",
    "roles",
    "probes_of",
    "probed_places",
    "quantization",
    "quantization_of_one",
    "quantized",
    "sorted_dimensions",
    "dimension_maps",
    "order_of_dimensions",
    "token_map",
    "over_layers",
    "MEASURES",
    "sink_curves",
    "attention_map_figure",
    "to_png",
]
