"""Benchmark rows as tables that carry their provenance."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """Provenance, roofs, then a table each for attention, key_mass and the norm."""
    roofs = report["roofs"]
    lines = [
        "# Kernel benchmarks",
        "",
        ", ".join(f"{key} {value}" for key, value in report["provenance"].items()) + ".",
        f"Measured roofs: bfloat16 product {roofs['matmul_tflops']:.2f} TFLOP/s, copy {roofs['copy_gbs']:.1f} GB/s.",
        "Every row passed its correctness gate first; bfloat16; medians.",
    ]
    for name, reason in sorted(report["missing_baselines"].items()):
        lines.append(f"Not measured: {name} ({reason}).")
    rows = report["rows"]
    lines += _attention([row for row in rows if row["table"] == "attention"], roofs["matmul_tflops"])
    lines += _key_mass([row for row in rows if row["table"] == "key_mass"])
    lines += _norm([row for row in rows if row["table"] == "norm"], roofs["copy_gbs"])
    lines += _tiles([row for row in rows if row["table"] == "tiles"])
    return "\n".join(lines) + "\n"


def _attention(rows: list[dict[str, Any]], roof: float) -> list[str]:
    lines = [
        "",
        "## Attention, causal",
        "",
        "FLOPs: 4 B H T^2 D / 2 forward, 2.5 times that backward. To the best baseline: of the same or fewer features.",
        "",
        "| D | T | B x H | contestant | features | forward ms | TFLOP/s | of roof | to best baseline "
        "| backward ms | TFLOP/s | of roof | to best baseline | peak MiB | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = (
            f"| {row['head_dim']} | {row['tokens']} | {row['batch']} x {row['heads']} | {row['contestant']} "
            f"| {' '.join(row['features']) or '-'} "
        )
        if "refused" in row:
            lines.append(f"{shape}| {row['refused']} |" + " |" * 9)
            continue
        cells = []
        for way in ("forward", "backward"):
            speed = row[f"{way}_tflops"]
            best = max((baseline[f"{way}_tflops"] for baseline in _baselines(row, rows)), default=None)
            ratio = "-" if best is None or not row["ours"] else f"{speed / best:.2f}"
            cells.append(f"| {row[f'{way}_ms']:.3f} | {speed:.2f} | {speed / roof:.2f} | {ratio} ")
        lines.append(f"{shape}{''.join(cells)}| {_number(row['peak_mib'])} | {row['error']:.0e} |")
    return lines


def _baselines(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shape = ("batch", "heads", "tokens", "head_dim")
    return [
        other
        for other in rows
        if not other["ours"]
        and "refused" not in other
        and all(other[key] == row[key] for key in shape)
        and ("sink" in other["features"]) == ("sink" in row["features"])
    ]


def _key_mass(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["", "## key_mass", "", "| D | T | B x H | ms | of a forward |", "|---|---|---|---|---|"]
    for row in rows:
        shape = f"| {row['head_dim']} | {row['tokens']} | {row['batch']} x {row['heads']} "
        if "refused" in row:
            lines.append(f"{shape}| {row['refused']} | |")
        else:
            lines.append(f"{shape}| {row['forward_ms']:.3f} | {row['of_a_forward']:.2f} |")
    return lines


def _norm(rows: list[dict[str, Any]], roof: float) -> list[str]:
    lines = [
        "",
        "## GatedNorm, rank 16",
        "",
        "GB/s of the least a pass must move: 2 matrices forward, 3 backward.",
        "",
        "| rows x width | contestant | gate | forward ms | GB/s | of copy | backward ms | GB/s | of copy | peak MiB "
        "| error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row['rows']} x {row['width']} | {row['contestant']} | {'yes' if row['gated'] else 'no'} "
        if "refused" in row:
            lines.append(f"{start}| {row['refused']} |" + " |" * 7)
            continue
        cells = [
            f"| {row[f'{way}_ms']:.3f} | {row[f'{way}_gbs']:.1f} | {row[f'{way}_gbs'] / roof:.2f} "
            for way in ("forward", "backward")
        ]
        lines.append(f"{start}{''.join(cells)}| {_number(row['peak_mib'])} | {row['error']:.0e} |")
    return lines


def _tiles(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "## Tiles, fastest first",
        "",
        "| kernel | D | tile, warps, stages | ms | table |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        height, width, warps, stages = row["tile"]
        outcome = row.get("refused") or f"{row['ms']:.3f}"
        chosen = "chosen" if row["chosen"] else ""
        lines.append(
            f"| {row['kernel']} | {row['head_dim']} | {height} x {width}, {warps}, {stages} | {outcome} | {chosen} |"
        )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
