"""Causal probes: what a model's loss owes to its residual sinks and attention sinks."""
