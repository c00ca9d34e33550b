"""Benchmark rows as tables."""

from typing import Any

from benchmarks.tables import number, table

Row = dict[str, Any]


def markdown(rows: list[Row]) -> str:
    """Roofs, then one table each for attention, key_mass and the norm; every row has the `roofs` measured with it."""
    roofs = dict.fromkeys(
        f"bfloat16 product {row['roofs']['matmul_tflops']:.2f} TFLOP/s, copy {row['roofs']['copy_gbs']:.1f} GB/s"
        for row in rows
    )
    lines = [
        f"Measured roofs, one pair for each command: {'; '.join(roofs)}. "
        "Every row passed its correctness gate first; bfloat16; medians.",
        "",
        "## Attention, causal",
        "",
        "FLOPs: 4 B H T^2 D / 2 forward, 2.5 times that backward. Best baseline: with the same or fewer features.",
    ]
    lines += table(
        "D | T | B x H | contestant | features | forward ms | TFLOP/s | of roof | to best baseline "
        "| backward ms | TFLOP/s | of roof | to best baseline | peak MiB | error",
        [_attention(row, rows) for row in rows if row["table"] == "attention"],
    )
    lines += ["", "## key_mass"]
    lines += table("D | T | B x H | ms | of a forward", [_key_mass(row) for row in rows if row["table"] == "key_mass"])
    lines += ["", "## GatedNorm, rank 16", "", "GB/s of the minimum traffic: 2 matrices forward, 3 backward."]
    lines += table(
        "rows x width | contestant | gate | forward ms | GB/s | of copy | backward ms | GB/s | of copy | peak MiB "
        "| error",
        [_norm(row) for row in rows if row["table"] == "norm"],
    )
    return "\n".join(lines) + "\n"


def _cells(row: Row, **forms: str) -> list[str]:
    return [number(row[name], form) for name, form in forms.items()]


def _shape(row: Row) -> list[str]:
    return [row["head_dim"], row["tokens"], f"{row['batch']} x {row['heads']}"]


def _attention(row: Row, rows: list[Row]) -> list[str]:
    cells = [*_shape(row), row["contestant"], " ".join(row["features"]) or "-"]
    if "refused" in row:
        return [*cells, row["refused"]]
    for way in ("forward", "backward"):
        speed = row[f"{way}_tflops"]
        best = max((other[f"{way}_tflops"] for other in _baselines(row, rows)), default=None)
        ratio = "-" if best is None or not row["ours"] else f"{speed / best:.2f}"
        cells += [f"{row[f'{way}_ms']:.3f}", f"{speed:.2f}", f"{speed / row['roofs']['matmul_tflops']:.2f}", ratio]
    return cells + _cells(row, peak_mib=".0f", error=".0e")


def _baselines(row: Row, rows: list[Row]) -> list[Row]:
    return [
        other
        for other in rows
        if other["table"] == "attention"
        and not other["ours"]
        and "refused" not in other
        and _shape(other) == _shape(row)
        and ("sink" in other["features"]) == ("sink" in row["features"])
    ]


def _key_mass(row: Row) -> list[str]:
    measured = [row["refused"]] if "refused" in row else _cells(row, forward_ms=".3f", of_a_forward=".2f")
    return _shape(row) + measured


def _norm(row: Row) -> list[str]:
    cells = [f"{row['rows']} x {row['width']}", row["contestant"], "yes" if row["gated"] else "no"]
    if "refused" in row:
        return [*cells, row["refused"]]
    for way in ("forward", "backward"):
        speed = row[f"{way}_gbs"]
        cells += [f"{row[f'{way}_ms']:.3f}", f"{speed:.1f}", f"{speed / row['roofs']['copy_gbs']:.2f}"]
    return cells + _cells(row, peak_mib=".0f", error=".0e")
