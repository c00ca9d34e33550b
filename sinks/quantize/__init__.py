"""Simulated quantization: number formats, transforms, and what they cost a model."""
