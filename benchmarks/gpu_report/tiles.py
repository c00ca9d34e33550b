"""Stage c: ranks the candidate tiles and prints the best as entries of `sink_kernels/tiles.py`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from sink_kernels.tiles import CANDIDATES, Tile

from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels import tiles
from benchmarks.kernels.checks import attention_checks, make_call, wrong
from benchmarks.kernels.measure import Bench, reason_of
from benchmarks.tables import number, table

HEAD_DIMS = (128, 64, 256)  # the most used first
# Timings of one tile vary by about this much; smaller gains are ignored.
NOISE = 0.01


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Rank the candidates of every kernel."""
    return ranked(context, CANDIDATES)


def ranked(context: StageContext, candidates: Mapping[tuple[str, int], Sequence[Tile]]) -> Iterator[dict[str, Any]]:
    """Time every tile of every kernel; the fastest is checked against float64 before it counts as best.

    The tiles of a kernel are compared with one another, so that one command measures all of them.

    Args:
        context: the stage's.
        candidates: by kernel and head dimension; the table's own tile is timed beside them.
    """
    bench = Bench(context.device, context.dry)
    # Of a kernel without a time everything failed.
    known = [row for row in context.before.get("best", ()) if row["best_ms"] is not None]
    ranked_before = {(row["kernel"], row["head_dim"]) for row in known}
    rows = [row for row in context.before.get("rows", ()) if (row["kernel"], row["head_dim"]) in ranked_before]
    result: dict[str, Any] = {"rows": rows, "best": known, "left_out": []}
    for head_dim in (64,) if context.dry else HEAD_DIMS:
        for kernel in (kernel for kernel, width in candidates if width == head_dim):
            if (kernel, head_dim) in ranked_before:
                continue
            if context.late:
                result["left_out"].append(f"{kernel} D {head_dim}")
                continue
            timed = tiles.ranking(bench, kernel, head_dim, candidates[kernel, head_dim])
            result["rows"] += timed
            result["best"].append(best(timed, lambda row: reason_against(row, context.dry, str(context.device))))
            yield result
    yield result


def best(ranked: list[dict[str, Any]], reason_against: Callable[[dict[str, Any]], str | None]) -> dict[str, Any]:
    """The fastest correct tile; the table's tile unless another is faster by more than noise.

    Args:
        ranked: rows of one kernel and head dimension, fastest first.
        reason_against: row -> why its tile must not be used, None if it can be.
    """
    own = next(row for row in ranked if row["chosen"])
    answer = {name: own[name] for name in ("kernel", "head_dim")} | {"now": own["tile"], "now_ms": own.get("ms")}
    rejected: dict[str, str] = {}
    for row in ranked:
        worth_it = "ms" not in own or row.get("ms", float("inf")) < (1 - NOISE) * own["ms"]
        if row is own or "ms" not in row or not worth_it:
            continue
        reason = reason_against(row)
        if reason is None:
            return answer | {"best": row["tile"], "best_ms": row["ms"], "wrong": rejected}
        rejected[str(row["tile"])] = reason
    return answer | {"best": own["tile"], "best_ms": own.get("ms"), "wrong": rejected}


def reason_against(row: dict[str, Any], dry: bool, device: str) -> str | None:
    """The errors of a tile's results on a sequence of several tiles and a partial one; None if correct."""
    dtype = torch.float32 if dry else torch.bfloat16
    call = make_call(
        "learnable_sink", heads=1 if dry else 4, tokens=60 if dry else 600, head_dim=row["head_dim"], dtype=dtype
    )
    with tiles.replaced(row["kernel"], Tile(*row["tile"])):
        try:
            return wrong(attention_checks(call.to(device), dtype)) or None
        except Exception as failure:
            return reason_of(failure)


def entries(result: dict[str, Any]) -> str:
    """The best tiles as lines of a table in `sink_kernels/tiles.py`."""
    return "".join(
        f'    ("{row["kernel"]}", {row["head_dim"]}): Tile({_arguments(Tile(*row["best"]))}),\n'
        for row in sorted(result["best"], key=lambda row: (row["kernel"], row["head_dim"]))
    )


def _arguments(tile: Tile) -> str:
    return ", ".join(map(repr, tile[:4] if tile.schedule == "plain" else tile))


def markdown(result: dict[str, Any]) -> str:
    """The ranking, and the new table entries."""
    lines = [
        "# c. Tiles",
        "",
        f"Half precision; the table's tile stays unless another is correct and faster by more than {NOISE:.0%}.",
        "Entries for `kernels/sink_kernels/tiles.py`:",
        "",
        "```python",
        entries(result).rstrip(),
        "```",
    ]
    lines += table(
        "kernel | D | now: rows, columns, warps, stages, schedule | ms | best | ms | faster but wrong",
        (
            (row["kernel"], row["head_dim"], row["now"], number(row["now_ms"], ".3f"), row["best"],
             number(row["best_ms"], ".3f"), "; ".join(f"{tile}: {why}" for tile, why in row["wrong"].items()) or "-")
            for row in result["best"]
        ),
    )  # fmt: skip
    lines += ["", "Every tile, fastest first:"]
    lines += table(
        "kernel | D | tile | ms",
        (
            (row["kernel"], row["head_dim"], row["tile"], row.get("refused") or f"{row['ms']:.3f}")
            for row in result["rows"]
        ),
    )
    return "\n".join(lines) + "\n"
