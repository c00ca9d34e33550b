"""A stage with more to measure than its time allows."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext

NEEDS_S = 60.0


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    rows = context.before.get("rows", 0) + 1
    enough = rows > 2 or context.seconds_left > NEEDS_S
    yield {"rows": rows, "seconds_left": context.seconds_left, "left_out": [] if enough else ["the rest"]}


def markdown(result: dict[str, Any]) -> str:
    return f"# Long\n\n{result['rows']} rows.\n"
