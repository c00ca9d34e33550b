"""The LightningModules: `CausalLM` with every option free, and the five named families."""

from sinks.families.causal_lm import CausalLM, Optimization
from sinks.families.named import Baseline, Clipped, Gated, NoNorm, SinkAbsorbed

__all__ = ["Baseline", "CausalLM", "Clipped", "Gated", "NoNorm", "Optimization", "SinkAbsorbed"]
