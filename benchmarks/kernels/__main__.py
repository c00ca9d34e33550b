"""`python -m benchmarks.kernels --output DIR`: measure, gate, write bench.json and bench.md."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import attention, norm, tiles
from benchmarks.kernels.measure import Bench, roofs
from benchmarks.kernels.report import markdown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for bench.json and bench.md")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, to see that all runs; also without a GPU")
    parser.add_argument("--tiles", action="store_true", help="rank the candidate tiles of the attention kernels too")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128, 256], help="head dimensions to measure")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("no GPU is at hand: timings of a CPU would mislead; use --dry to try the code", file=sys.stderr)
        return 2
    bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), options.dry, tuple(options.head_dims))
    parts = [attention.rows, norm.rows] + ([tiles.rows] if options.tiles else [])
    rows, missing, failed = [], {}, []
    for row in [row for part in parts for row in _announced(part(bench))]:
        if row["table"] == "missing baselines":
            missing.update({name: reason for name, reason in row.items() if name != "table"})
            continue
        rows.append(row)
        if "refused" in row and row.get("ours", row.get("contestant") == "sink_kernels"):
            failed.append(row)
    report = {"provenance": _provenance(bench), "roofs": roofs(bench), "missing_baselines": missing, "rows": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "bench.md").write_text(markdown(report))
    for row in failed:
        print(f"our own kernel failed its gate: {row}", file=sys.stderr)
    return 1 if failed else 0


def _announced(rows: Any) -> Any:
    for row in rows:
        if "contestant" in row:
            size = row.get("tokens", row.get("width"))
            outcome = row.get("refused") or f"{row['forward_ms']:.3f} / {row['backward_ms']:.3f} ms"
            print(f"{row['contestant']} {' '.join(row.get('features', []))} {size}: {outcome}", flush=True)
        yield row


def _provenance(bench: Bench) -> dict[str, str]:
    known = {
        "device": torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "date": datetime.date.today().isoformat(),
        "commit": _output_of("git", "rev-parse", "HEAD"),
    }
    if bench.device.type == "cuda":
        known["driver"] = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return known


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.split("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
