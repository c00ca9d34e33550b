"""Benchmarks and measurements; not installed with the package.

kernels/       correctness checks of the kernels, their speed against baselines, the offline compile report
gpu_report/    `make gpu-report`: correctness and speed on a GPU, in stages
*.py           `make bench`: attention and a training step on the CPU
same_values.py whether two sets of runs recorded the same values
"""
