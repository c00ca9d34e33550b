"""Whether two sets of runs recorded the same values, bit for bit: python -m benchmarks.same_values BEFORE AFTER."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sinks.errors import UserError
from sinks.record import RunFolder, find_runs

# They measure the machine.
TIMES = ("wall_s", "tokens_per_second", "tflops", "data_wait", "mfu", "peak_memory")


def values(run: RunFolder) -> Iterator[tuple[str, np.ndarray]]:
    """What a run recorded in metrics.jsonl and statistics/, by name; times apart."""
    for line in run.metrics():
        for key, value in line.items():
            if not any(time in key for time in TIMES):
                yield f"step {line['step']} {key}", np.asarray(value)
    for stage in ("train", "validation"):
        statistics = run.statistics(stage)
        yield f"{stage} steps", np.asarray(statistics.steps)
        for name, array in statistics.arrays.items():
            yield f"{stage} {name}", array


def compare(before: Path, after: Path) -> tuple[int, list[str]]:
    """The number of values compared, and what differs.

    Raises:
        UserError: a folder contains no run.
    """
    runs = [{str(run.path.relative_to(root)): run for run in find_runs(root)} for root in (before, after)]
    for root, found in zip((before, after), runs, strict=True):
        if not found:
            raise UserError(f"{root} contains no run: give a folder of runs, such as runs/backcopy")
    differing = [f"{name}: in one of the two alone" for name in sorted(runs[0].keys() ^ runs[1].keys())]
    compared = 0
    for name in sorted(runs[0].keys() & runs[1].keys()):
        one, other = (dict(values(found[name])) for found in runs)
        for key in sorted(one.keys() | other.keys()):
            if key not in one or key not in other:
                differing.append(f"{name} {key}: in one of the two alone")
                continue
            compared += one[key].size
            if one[key].dtype != other[key].dtype or one[key].tobytes() != other[key].tobytes():
                differing.append(f"{name} {key}")
    return compared, differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    try:
        compared, differing = compare(options.before, options.after)
    except UserError as error:
        parser.error(str(error))
    print(*differing, f"{compared:,} values compared, {len(differing)} differences", sep="\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
