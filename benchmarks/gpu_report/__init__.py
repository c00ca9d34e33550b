"""`python -m benchmarks.gpu_report`: what has to be known of a GPU, measured in minutes on a bare machine."""
