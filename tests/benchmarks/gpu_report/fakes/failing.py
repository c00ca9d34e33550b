"""A stage that fails half way."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    yield {"half": "measured"}
    raise RuntimeError("an illegal | memory access")


def markdown(result: dict[str, Any]) -> str:
    return f"# Half\n\n{result['half']}.\n"
