"""Benchmarks of the kernels against their peers, behind a correctness gate: `python -m sink_kernels.bench`."""
