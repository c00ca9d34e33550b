"""The provenance of a number: commit, versions, machine, command."""

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sinks.record.versions import git, version_of

PACKAGES = ("torch", "triton", "lightning", "torchmetrics", "litdata", "numpy", "tokenizers")


def processor() -> str:
    """The name of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def provenance(*packages: str) -> dict[str, Any]:
    """Commit (null outside a checkout), dirty flag, versions, hardware, command and time of the calling process.

    Args:
        packages: whose versions matter too.
    """
    status = git("status", "--porcelain")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(status) if status is not None else None,
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in (*PACKAGES, *packages)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
