"""Effective weight and routes of SmolLM2-135M-Instruct, by the functions of the statistics.

The golden numbers were computed by another program, from transformers' eager weights in plain torch: windows 4 to 11 of
512 tokens without BOS, queries from 8 on, means over 270 heads.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from sinks.interop.load import load_pretrained
from sinks.interop.rows import read_rows
from sinks.interop.sites import huggingface_sites
from sinks.observe import AttentionRecord, Reader
from sinks.stats import functional

ROOT = Path(__file__).parents[2]
TEXT = ROOT.parent / "shared/data/wikitext-2-valid.txt"
pytestmark = [pytest.mark.models, pytest.mark.skipif(not TEXT.is_file(), reason=f"there is no {TEXT}")]
FIRST_QUERY = 8
GOLDEN = {
    "effective_weight": 0.634, "first": 0.295, "lost_first": 0.234, "lost_other": 0.177, "lost_own": 0.006,
    "excess": 0.051, "own": 0.057, "previous": 0.067, "value_of_first": 0.359,
}  # fmt: skip
TOLERANCE = 0.002


@pytest.fixture(scope="module")
def means() -> dict[str, Tensor]:
    """Each quantity by layer and head [30, 9], and the coefficient of variation of the effective weight over tokens."""
    smollm2 = load_pretrained("smollm2", cache=ROOT / "data")
    rows = read_rows(smollm2, str(TEXT), 12, 512, "none").tokens[4:]
    found: dict[str, list[Tensor]] = {}

    def listen(site: str, record: Any) -> None:
        if not isinstance(record, AttentionRecord):
            return
        x = record.route_inputs()
        assert record.previous_token_mass is not None
        parts = functional.routes(x) | {"first": x.first, "own": x.own, "previous": record.previous_token_mass}
        total = sum(parts[name] for name in ("effective_weight", "missing", "lost_first", "lost_own", "lost_other"))
        assert (total - parts["excess"] - 1).abs().max() < 1e-5
        parts = {name: part[..., FIRST_QUERY:] for name, part in parts.items()}
        parts["value_of_first"] = x.relative[..., :1]
        weight = parts["effective_weight"]
        cv = weight.std((0, 2)) / weight.mean((0, 2))
        for name, part in [*((name, part.mean((0, 2))) for name, part in parts.items()), ("cv", cv)]:
            found.setdefault(name, []).append(part)

    reader = Reader(huggingface_sites(smollm2.model), ["routes", "neighbors"], listener=listen)
    with reader.reading(), torch.no_grad():
        for pair in rows.split(2):
            smollm2.model(pair)
    return {name: torch.stack(parts).view(4, 30, 9).mean(0) for name, parts in found.items()}


def test_means_over_heads(means: dict[str, Tensor]) -> None:
    found = {name: float(means[name].mean()) for name in GOLDEN}
    assert {n: x for n, x in found.items() if abs(x - GOLDEN[n]) > TOLERANCE} == {}
    assert float((means["effective_weight"] < 0.5).float().mean()) == pytest.approx(0.27, abs=0.005)


def test_heads_with_and_without_a_sink(means: dict[str, Tensor]) -> None:
    sink = means["first"] > 0.3
    assert int(sink.sum()) == 130
    for heads, weight, cv in ((sink, 0.573, 0.42), (~sink, 0.691, 0.32)):
        assert float(means["effective_weight"][heads].mean()) == pytest.approx(weight, abs=TOLERANCE)
        assert float(means["cv"][heads].mean()) == pytest.approx(cv, abs=0.005)


def test_layers_and_the_strongest_head(means: dict[str, Tensor]) -> None:
    by_layer = means["effective_weight"].mean(1)
    assert float(by_layer[0]) == pytest.approx(1.03, abs=0.005)
    assert all(0.42 - 0.005 <= float(x) <= 0.52 + 0.005 for x in by_layer[3:9])
    assert divmod(int(means["first"].argmax()), 9) == (18, 8)
    strongest = {name: float(means[name][18, 8]) for name in ("first", "effective_weight", "cv")}
    assert strongest == pytest.approx({"first": 0.937, "effective_weight": 0.075, "cv": 0.02}, abs=0.005)
