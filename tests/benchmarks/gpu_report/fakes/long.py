"""A stage with more to measure than its time allows."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext

NEEDS_S = 60.0


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    yield {"rows": 1, "left_out": [] if context.seconds_left > NEEDS_S else ["the rest"]}


def markdown(result: dict[str, Any]) -> str:
    return f"# Long\n\n{result['rows']} row.\n"
