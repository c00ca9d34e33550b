"""Selection of the best tile."""

import time
from pathlib import Path
from typing import Any

import torch
from sink_kernels.tiles import CANDIDATES

from benchmarks.gpu_report import specialized, tiles
from benchmarks.gpu_report.stage_context import StageContext


def tile_row(tile: list[int], ms: float | None, chosen: bool = False) -> dict[str, Any]:
    row = {"kernel": "forward", "head_dim": 64, "tile": tile, "chosen": chosen}
    return row | ({"refused": "too large"} if ms is None else {"ms": ms})


OWN, FAST, FASTEST = [128, 64, 4, 3], [64, 64, 4, 3], [128, 128, 8, 2]


def test_the_fastest_correct_tile_is_best() -> None:
    ranked = [tile_row(FASTEST, 1.0), tile_row(FAST, 1.5), tile_row(OWN, 2.0, chosen=True)]
    found = tiles.best(ranked, lambda row: "output 1e+00" if row["tile"] == FASTEST else None)
    assert found["best"] == FAST
    assert found["wrong"] == {str(FASTEST): "output 1e+00"}
    assert tiles.entries({"best": [found]}) == '    ("forward", 64): Tile(64, 64, 4, 3),\n'


def test_a_tile_that_is_faster_by_noise_does_not_replace_the_tables_own() -> None:
    ranked = [tile_row(FAST, 1.995), tile_row(OWN, 2.0, chosen=True), tile_row(FASTEST, None)]
    assert tiles.best(ranked, lambda row: None)["best"] == OWN


def test_a_table_tile_that_does_not_run_is_replaced() -> None:
    ranked = [tile_row(FAST, 2.0), tile_row(OWN, None, chosen=True)]
    assert tiles.best(ranked, lambda row: None)["best"] == FAST


def test_tiles_are_ranked_at_every_head_dimension_that_has_candidates() -> None:
    assert {head_dim for _, head_dim in CANDIDATES} == set(tiles.HEAD_DIMS)


def test_a_schedule_is_part_of_an_entry() -> None:
    best = {"kernel": "forward", "head_dim": 64, "best": [128, 64, 8, 3, "ahead"]}
    assert tiles.entries({"best": [best]}) == "    (\"forward\", 64): Tile(128, 64, 8, 3, 'ahead'),\n"


def test_the_forward_in_gluon_is_named_missing_where_it_cannot_run(tmp_path: Path) -> None:
    context = StageContext(tmp_path, dry=True, minutes=1.0, deadline=time.monotonic() + 100)
    *_, result = specialized.run(context)
    if not torch.cuda.is_available():
        assert result["missing"] == {
            "forward in Gluon": "it runs on compute capability 9.0 only, this is a CPU",
        }
        assert [row["tile"][4] for row in result["rows"]] == ["plain"]
