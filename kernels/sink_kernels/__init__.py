"""Attention with sinks, gates and statistics, fused where a fused path exists and exact everywhere.

Imports torch alone. See `attention` for what is offered and `reference` for the formulas.
"""

from sink_kernels.attention import attention
from sink_kernels.gated_norm import gated_norm
from sink_kernels.key_mass import key_mass
from sink_kernels.options import BACKENDS, NORMALIZERS, STATISTICS, Backend, Normalizer, NormalizerFunction, Statistic

__all__ = [
    "BACKENDS",
    "NORMALIZERS",
    "STATISTICS",
    "Backend",
    "Normalizer",
    "NormalizerFunction",
    "Statistic",
    "attention",
    "gated_norm",
    "key_mass",
]
