"""`python -m benchmarks.gpu_report --output DIR --budget MINUTES`: every stage in its own process, then report.md.

Stages run in order of value until the time is up. Each writes a JSON and a Markdown file as it runs; the same command
again goes on with what is not yet measured, however the one before ended. A stage that is compiling when its time is
up may take another minute, but never past --limit.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from sinks.errors import UserError

NEEDED = ("torch", "numpy", "lightning", "torchmetrics", "yaml")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if no stage failed, 1 if one did, 2 for an invalid command."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, required=True, help="folder of the report")
    parser.add_argument("--budget", type=float, default=8.0, help="minutes for everything (default: 8)")
    parser.add_argument("--limit", type=float, help="minutes after which this machine ends a command (default: none)")
    parser.add_argument("--stages", help="letters of the stages to run, e.g. a,d (default: all)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, to test everything; also without a GPU")
    parser.add_argument(
        "--archive",
        type=Path,
        help="one .tar.gz of the report, updated after every stage: for machines that return few files",
    )
    started = time.monotonic()
    options = parser.parse_args(arguments)
    try:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"{sys.executable} has no {', '.join(missing)}: use a Python that has, e.g. "
                "make gpu-report PYTHON=/path/to/python"
            )
        from benchmarks.gpu_report.run import Report
        from benchmarks.gpu_report.stages import chosen

        report = Report(options.output, options.budget, options.dry, options.archive, options.limit, started)
        return report.run(chosen(options.stages))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
