"""The table of GPUs in kernels/README.md, and that of the modeled speed, against the recorded compile report."""

import json
import re
from pathlib import Path

import torch
from sink_kernels.accelerators import OLDEST_CAPABILITY
from sink_kernels.tiles import CANDIDATES, SPECIALIZED, Tile, rows_a_block, tile_for

from benchmarks.kernels.compile_report import GPUS, pinned

ROOT = Path(__file__).parents[2]
README = (ROOT / "kernels/README.md").read_text(encoding="utf-8")
RECORDED = json.loads((ROOT / "experiments/results/kernel-report/triton-3.6.json").read_text(encoding="utf-8"))
ROWS = {row["name"]: row for row in RECORDED["rows"]}
KERNELS = {
    "forward, sink": ("forward", ()),
    "forward, sink, gate": ("forward", ("gate",)),
    "forward, sink, gate, all statistics": ("forward", ("gate", "statistics")),
    "candidate: scores ahead": ("forward", ("ahead",)),
    "candidate: Gluon": ("forward", ("specialized",)),
    "backward, keys": ("backward_keys", ()),
    "backward, queries": ("backward_queries", ()),
    "key_mass": ("key_mass", ()),
}


def test_the_recorded_report_is_of_the_kernels_as_they_are_pinned() -> None:
    assert set(ROWS) == {config.name for config in pinned()}
    assert [row["name"] for row in RECORDED["rows"] if row["violations"]] == []


def test_the_recorded_report_has_the_tiles_of_the_table() -> None:
    for row in RECORDED["rows"]:
        if row["kernel"].startswith("gated_norm"):
            continue
        capability = divmod(GPUS[row["gpu"]].capability, 10)
        dtype = torch.float32 if "float32" in row["features"] else torch.bfloat16
        if row["kernel"] == "backward_rows":
            expected = Tile(rows_a_block(row["width"]), 0, 4, 1)
        elif "specialized" in row["features"]:
            expected = SPECIALIZED[row["kernel"], row["width"]][0]
        elif "ahead" in row["features"]:
            candidates = CANDIDATES[row["kernel"], row["width"]]
            expected = next(tile for tile in candidates if tile.schedule == "ahead")
        else:
            expected = tile_for(row["kernel"], row["width"], dtype, capability)
        assert row["tile"] == expected._asdict(), row["name"]


def test_every_compiled_gpu_has_a_row_and_older_ones_the_reference() -> None:
    named = re.findall(r"\| (\d+\.\d) \(`(sm_\d+)`\) \| everything fused", README)
    assert {gpu for _, gpu in named} == set(GPUS)
    assert all(float(capability) * 10 == GPUS[gpu].capability for capability, gpu in named)
    assert f"below {'.'.join(map(str, OLDEST_CAPABILITY))} | the reference" in README


def test_the_modeled_speed_is_that_of_the_recorded_report() -> None:
    for line, (kernel, features) in KERNELS.items():
        (cells,) = re.findall(rf"^\| {re.escape(line)} \|(.*)\|$", README, flags=re.MULTILINE)
        for dim, cell in zip((64, 128, 256), cells.split("|"), strict=True):
            name = "-".join([kernel, f"d{dim}", *features, "sm_90"])
            if not cell.strip():
                assert name not in ROWS
                continue
            row = ROWS[name]
            low, high = row["utilization"]
            loop = row["hot_loop"]
            shown = f"{row['registers']} / {loop['spills']} / {loop['instructions']} / {low:.2f}-{high:.2f}"
            assert cell.strip() == shown, name
