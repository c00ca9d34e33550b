"""A stage of many rows, each named in a file when its measurement begins."""

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext

NAMES = [f"row {i}" for i in range(15)]
SECONDS = 0.02


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    rows = [*context.before.get("rows", ())]
    yield {"rows": rows}
    for name in NAMES:
        if name in rows:
            continue
        with (context.folder / "begun").open("a") as stream:
            stream.write(f"{name}\n")
        time.sleep(SECONDS)
        rows.append(name)
        yield {"rows": rows}


def markdown(result: dict[str, Any]) -> str:
    return "# Rows\n\n" + "".join(f"- {name}\n" for name in result["rows"])
