"""Runs a command as one task of a Ray cluster, and ends with its exit code.

    ray start --head   # and ray start --address=... on the other machines, which share the file system
    make ablation JOBS=16 LAUNCH="python experiments/ray/launch.py"

A run whose machine is lost goes on from its last checkpoint on another one. JOBS is how many runs Ray is given at a
time; how many of them it starts depends on its processors: RAY_CPUS (1) and RAY_GPUS (0) are what each run takes.
"""

import os
import signal
import subprocess
import sys

import ray


@ray.remote(max_retries=3)
def execute(command: list[str], folder: str, environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, cwd=folder, env=os.environ | environment)
    try:
        return process.wait()
    except KeyboardInterrupt:  # of ray.cancel: the run saves its state
        process.terminate()
        process.wait()
        raise


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(address="auto", log_to_driver=False)
    passed = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")}
    task = execute.options(num_cpus=float(os.environ.get("RAY_CPUS", 1)), num_gpus=float(os.environ.get("RAY_GPUS", 0)))
    running = task.remote(sys.argv[1:], os.getcwd(), passed)
    try:
        return ray.get(running)
    except KeyboardInterrupt:
        ray.cancel(running)
        return 130


if __name__ == "__main__":
    sys.exit(main())
