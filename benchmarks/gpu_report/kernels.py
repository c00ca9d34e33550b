"""Stage b: the kernels' speed against every installed baseline and the machine's measured roofs."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels import attention, norm
from benchmarks.kernels.measure import Bench, compile_alike, roofs
from benchmarks.kernels.results import markdown as tables

Row = dict[str, Any]

HEAD_DIMS = (128, 64, 256)  # the most used first


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Roofs, then attention by head dimension and GatedNorm, shape by shape until time is up.

    The rows of a shape are compared with one another, so that one command measures all of them.
    """
    compile_alike()
    bench = Bench(context.device, context.dry)
    shapes, missing = _shapes(bench)
    complete: list[str] = context.before.get("complete", [])
    rows = [row for row in context.before.get("rows", ()) if row["shape"] in complete]
    result: dict[str, Any] = {"missing": missing, "rows": rows, "complete": [*complete], "faults": [], "left_out": []}
    yield result
    found = roofs(bench)
    for name, measured in shapes:
        if name in complete:
            continue
        if context.late:
            result["left_out"].append(name)
            continue
        faults = len(result["faults"])
        for row in measured:
            result["rows"].append(row | {"shape": name, "roofs": found})
            if "refused" in row and row.get("ours", row.get("contestant") == "sink_kernels"):
                result["faults"].append(f"our own kernel failed its gate: {row}")
            yield result
            if context.late:
                result["left_out"].append(f"the rest of {name}")
                break
        else:
            # A baseline that cannot run a shape is a result, a fault of ours is measured again.
            if len(result["faults"]) == faults:
                result["complete"].append(name)
    yield result


def _shapes(bench: Bench) -> tuple[list[tuple[str, Iterator[Row]]], dict[str, str]]:
    """(every shape's name and rows, which are measured as they are read; why baselines are missing)."""
    of_attention, missing = attention.contestants(bench.device)
    of_norm, missing_norms = norm.contestants(bench.device)
    found: list[tuple[str, Iterator[Row]]] = []
    for head_dim in HEAD_DIMS[:1] if bench.dry else HEAD_DIMS:
        for shape in attention.shapes(head_dim, bench.dry):
            name = f"attention D {shape.head_dim}, T {shape.tokens}"
            found.append((name, attention.rows(bench, of_attention, shape)))
        if head_dim == HEAD_DIMS[0]:
            for size in norm.shapes(bench.dry):
                found.append(("GatedNorm {} x {}".format(*size), norm.rows(bench, of_norm, *size)))
    return found, missing | missing_norms


def markdown(result: dict[str, Any]) -> str:
    """One table each for attention, key_mass and the norm."""
    return "# b. The kernels against their baselines\n\n" + tables(result["rows"])
