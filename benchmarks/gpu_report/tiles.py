"""Stage c: the candidate tiles ranked, and the best ones as entries of `sink_kernels/tiles.py`."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from sink_kernels.tiles import CANDIDATES, Tile, tile_for

from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels import tiles
from benchmarks.kernels.checks import attention_checks, make_call
from benchmarks.kernels.measure import Bench, reason_of

HEAD_DIMS = (128, 64, 256)  # the most used first
# Timings of one tile differ by about this much: what gains less is left as it is.
NOISE = 0.01


def run(context: StageContext) -> Iterator[dict[str, Any]]:
    """Every tile of every kernel timed, the fastest of each checked against float64 before it counts as best."""
    head_dims = (64,) if context.dry else HEAD_DIMS
    result: dict[str, Any] = {"rows": [], "best": [], "left_out": []}
    for head_dim in head_dims:
        wanted = [kernel for kernel, width in CANDIDATES if width == head_dim]
        rows = tiles.rows(Bench(context.device, context.dry, (head_dim,)))
        for kernel, of_kernel in itertools.groupby(rows, key=lambda row: row["kernel"]) if not context.late else ():
            ranked = list(of_kernel)
            wanted.remove(kernel)
            result["rows"] += ranked
            result["best"].append(best(ranked, lambda row: reason_against(row, context.dry, str(context.device))))
            yield result
            if context.late:
                break
        result["left_out"] += [f"{kernel} D {head_dim}" for kernel in wanted]
    yield result


def best(ranked: list[dict[str, Any]], reason_against: Callable[[dict[str, Any]], str | None]) -> dict[str, Any]:
    """The fastest tile that computes what it should; the table's own unless another is faster by more than noise.

    Args:
        ranked: rows of one kernel and head dimension, the fastest first.
        reason_against: row -> why its tile must not be used, None if nothing speaks against it.
    """
    own = next(row for row in ranked if row["chosen"])
    answer = {name: own[name] for name in ("kernel", "head_dim")} | {"now": own["tile"], "now_ms": own.get("ms")}
    wrong: dict[str, str] = {}
    for row in ranked:
        worth_it = "ms" not in own or row.get("ms", float("inf")) < (1 - NOISE) * own["ms"]
        if row is own or "ms" not in row or not worth_it:
            continue
        reason = reason_against(row)
        if reason is None:
            return answer | {"best": row["tile"], "best_ms": row["ms"], "wrong": wrong}
        wrong[str(row["tile"])] = reason
    return answer | {"best": own["tile"], "best_ms": own.get("ms"), "wrong": wrong}


def reason_against(row: dict[str, Any], dry: bool, device: str) -> str | None:
    """What is wrong with what a tile computes, on a text of several ragged tiles; None if nothing is."""
    from sink_kernels import triton_attention

    tile = Tile(*row["tile"])
    dtype = torch.float32 if dry else torch.bfloat16

    def patched(name: str, width: int, of: torch.dtype, capability: tuple[int, int]) -> Tile:
        return tile if name == row["kernel"] else tile_for(name, width, of, capability)

    call = make_call(
        "learnable_sink", heads=1 if dry else 4, tokens=60 if dry else 600, head_dim=row["head_dim"], dtype=dtype
    )
    with mock.patch.object(triton_attention, "tile_for", patched):
        try:
            checks = attention_checks(call.to(device), dtype)
        except Exception as failure:
            return reason_of(failure)
    wrong = [f"{name} {c.error:.1e} over {c.limit:.1e}" for name, c in checks.items() if not c.passed]
    return ", ".join(wrong) or None


def table(result: dict[str, Any]) -> str:
    """The best tiles as lines of a table in `sink_kernels/tiles.py`."""
    return "".join(
        f'    ("{row["kernel"]}", {row["head_dim"]}): Tile({", ".join(map(str, row["best"]))}),\n'
        for row in sorted(result["best"], key=lambda row: (row["kernel"], row["head_dim"]))
    )


def markdown(result: dict[str, Any]) -> str:
    """The ranking, and the table to put in place of the old one."""
    lines = [
        "# c. Tiles",
        "",
        f"Half precision; the table's own stays unless another is faster by more than {NOISE:.0%} and right.",
        "Entries for `kernels/sink_kernels/tiles.py`:",
        "",
        "```python",
        table(result).rstrip(),
        "```",
        "",
        "| kernel | D | now: rows, columns, warps, stages | ms | best | ms | faster but wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["best"]:
        wrong = "; ".join(f"{tile}: {why}" for tile, why in row["wrong"].items()) or "-"
        lines.append(
            f"| {row['kernel']} | {row['head_dim']} | {row['now']} | {_ms(row['now_ms'])} | {row['best']} | "
            f"{_ms(row['best_ms'])} | {wrong} |"
        )
    lines += ["", "Every tile, the fastest first:", "", "| kernel | D | tile | ms |", "|---|---|---|---|"]
    for row in result["rows"]:
        outcome = row.get("refused") or _ms(row["ms"])
        lines.append(f"| {row['kernel']} | {row['head_dim']} | {row['tile']} | {outcome} |")
    lines += [f"\nNot reached in time: {what}." for what in result["left_out"]]
    return "\n".join(lines) + "\n"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
