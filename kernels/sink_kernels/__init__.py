"""Attention with sinks, gates and statistics, fused where possible and exact everywhere.

Imports only torch. See `attention` for the options and `reference` for the formulas.
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
