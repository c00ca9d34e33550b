"""Everything that measures and is not installed.

kernels/       the kernels' correctness checks, their speed beside baselines, the offline compile report
gpu_report/    `make gpu-report`: all that has to be known of a GPU, in stages
*.py           `make bench`: attention and a training step on the CPU
"""
