"""The kernels' correctness checks, benchmarks beside their baselines, and offline compile report."""
