"""The LightningModules: `CausalLM` with every option free, and the five named families."""

from sinks.families.causal_lm import CausalLM, Optimization
from sinks.families.named import Baseline, Clipped, Gated, NoNorm, SinkAbsorbed

# Imported so that a config may name their classes without the module.
from sinks.models import derf, gains, layer_norm, seed_norm  # noqa: F401

__all__ = ["Baseline", "CausalLM", "Clipped", "Gated", "NoNorm", "Optimization", "SinkAbsorbed"]
