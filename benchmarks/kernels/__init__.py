"""Correctness checks, benchmarks against baselines, and the offline compile report of the kernels."""
