"""SmolLM2-135M-Instruct in the suite's decoder: transformers' logits, and golden statistics.

The golden numbers were computed by another program: transformers' eager attention and plain torch, on the same rows.
"""

from pathlib import Path

import pytest
import torch

from sinks.interop.decoder_import import import_model
from sinks.observe import Reader, sites_of
from tests.interop.shapes import assert_same_logits

ROOT = Path(__file__).parents[2]
TEXT = ROOT.parent / "shared/data/wikitext-2-valid.txt"
ROWS, LENGTH = 100, 64
# Of 27,000 (layer, head, row), of which 7 are within 1e-4 of the threshold; other numbers are relative to 1e-3.
FRACTIONS = {"sink_ratio_0.3": 0.6976, "sink_ratio_0.8": 0.1063, "sink_ratio_nyu": 0.7336}
GOLDEN = {
    "first_token_mass": 0.4469,
    "first_token_mass_with_first_row": 0.4555,
    "first_token_mass_max_head": 0.9848,
    "value_norm_ratio": 0.3641,
}
pytestmark = [pytest.mark.models, pytest.mark.skipif(not TEXT.is_file(), reason=f"there is no {TEXT}")]


@torch.no_grad()
def test_logits_and_statistics_of_smollm2() -> None:
    smollm2 = pytest.importorskip("sinks.interop.load").load_pretrained("smollm2", cache=ROOT / "data")
    text = TEXT.read_text(encoding="utf-8")[:60_000]
    ids = torch.tensor(smollm2.tokenizer.encode(text, add_special_tokens=False).ids[: ROWS * LENGTH])
    model = import_model(smollm2.folder, context_length=256)
    assert_same_logits(model(ids[None, :256]), smollm2.model(ids[None, :256]).logits)
    reader = Reader(sites_of(model))
    with reader.reading():
        for rows in ids.view(ROWS, LENGTH).split(20):
            model(rows)
    scalars, _ = reader.summarize()
    assert {key: scalars[f"attention/{key}"] for key in FRACTIONS} == pytest.approx(FRACTIONS, abs=5e-4, rel=0)
    assert {key: scalars[f"attention/{key}"] for key in GOLDEN} == pytest.approx(GOLDEN, rel=1e-3)
