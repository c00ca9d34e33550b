"""A stage that ignores its deadline, with a child process that would outlive it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"child": child.pid}
    time.sleep(600)


def markdown(result: dict[str, Any]) -> str:
    return f"# Hanging\n\nchild {result['child']}\n"
