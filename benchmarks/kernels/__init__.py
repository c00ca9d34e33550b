"""The kernels' correctness checks, benchmarks beside their peers, and offline compile report."""
