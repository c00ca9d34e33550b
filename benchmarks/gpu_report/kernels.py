"""Stage b: the kernels' speed against every installed baseline and the machine's measured roofs."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels import attention, norm
from benchmarks.kernels.measure import Bench, compile_alike, roofs
from benchmarks.kernels.results import markdown as tables

HEAD_DIMS = (128, 64, 256)  # the most used first


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Roofs, attention by head dimension, GatedNorm; row by row until time is up."""
    compile_alike()
    bench = Bench(context.device, context.dry)
    result: dict[str, Any] = {"roofs": roofs(bench), "missing": {}, "rows": [], "faults": [], "left_out": []}
    yield result
    first, *rest = HEAD_DIMS[:1] if context.dry else HEAD_DIMS
    parts = [
        (f"attention D {first}", attention.rows(bench._replace(head_dims=(first,)))),
        ("GatedNorm", norm.rows(bench)),
        *((f"attention D {d}", attention.rows(bench._replace(head_dims=(d,)))) for d in rest),
    ]
    for name, rows in parts:
        if context.late:
            result["left_out"].append(name)
            continue
        for row in rows:
            if row["table"] == "missing baselines":
                result["missing"] |= row["missing"]
                continue
            result["rows"].append(row)
            if "refused" in row and row.get("ours", row.get("contestant") == "sink_kernels"):
                result["faults"].append(f"our own kernel failed its gate: {row}")
            if context.late:
                result["left_out"].append(f"the rest of {name}")
                break
            yield result
    yield result


def markdown(result: dict[str, Any]) -> str:
    """One table each for attention, key_mass and the norm."""
    return "# b. The kernels against their baselines\n\n" + tables(result["rows"], result["roofs"])
