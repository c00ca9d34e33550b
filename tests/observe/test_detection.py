"""Sinks and massive tokens that were planted into made-up records are found where they were planted."""

import json

import pytest
import torch

from sinks.observe import AttentionRecord, NormRecord, Reader, sites_of
from sinks.observe.detection import Detection
from sinks.stats import functional
from tests.families.variants import build

ROWS, HEADS, LENGTH, WIDTH = 3, 2, 12, 16
LAYERS = [f"blocks.{i}.attention" for i in range(3)]


def key_mass(sinks: dict[tuple[int, int], float]) -> torch.Tensor:
    """Masses [B, H, T] of which key k of head h, in all rows, has alpha_k as given for (h, k), others 0.01."""
    alpha = torch.full((ROWS, HEADS, LENGTH), 0.01)
    for (head, key), value in sinks.items():
        alpha[:, head, key] = value
    return alpha * torch.arange(LENGTH, 0, -1)


def attention(sinks: dict[tuple[int, int], float]) -> AttentionRecord:
    return AttentionRecord(key_mass=key_mass(sinks))


def stream(massive: dict[tuple[int, int], float]) -> NormRecord:
    """|h| is 1 at every second channel and 0.02 at the others, but as given for (token, channel) in all rows."""
    h = torch.full((ROWS, LENGTH, WIDTH), 0.02)
    h[..., ::2] = -1.0
    for (token, channel), value in massive.items():
        h[:, token, channel] = value
    return NormRecord(h, h)


@pytest.fixture
def tokens() -> torch.Tensor:
    ids = torch.arange(100, 100 + LENGTH).repeat(ROWS, 1)
    ids[:, 5] = 7
    ids[1, 0] = 8
    return ids


def test_planted_sinks_are_found_by_position_and_token(tokens: torch.Tensor) -> None:
    detection = Detection()
    planted = [
        {(0, 0): 0.9},
        {(0, 0): 0.9, (1, 0): 0.4, (1, 5): 0.5},
        {(1, 5): 0.31, (0, 0): 0.29, (0, 9): 0.9},  # 9 is in the second half
    ]
    for _batch in range(2):
        detection.start_batch(tokens)
        for site, sinks in zip(LAYERS, planted, strict=True):
            detection.take(site, attention(sinks))
    found = detection.results(lambda i: f"<{i}>")
    assert json.loads(json.dumps(found)) == found
    assert (found["epsilon"], found["rows"]) == (0.3, 6)
    sinks = found["sinks"]
    assert sinks["positions"] == [{"position": 0, "count": 18}, {"position": 5, "count": 12}]
    assert sinks["count"] == 30
    assert {t["token"]: t["count"] for t in sinks["tokens"]} == {"<100>": 12, "<7>": 12, "<8>": 6}
    assert sinks["tokens"][-1] == {"id": 8, "token": "<8>", "count": 6}
    # (layer, head): 0,0 and 1,0 have position 0; 1,1 both; 2,1 position 5; 0,1 and 2,0 none.
    assert sinks["with_sink"] == pytest.approx(4 / 6)
    assert sinks["with_first"] == pytest.approx(3 / 6)
    # The strongest key: 0,0; 0,1 (all equal, the first of them); 1,0; 2,0 at position 0, and 1,1; 2,1 at position 5.
    assert sinks["strongest_first"] == pytest.approx(4 / 6)
    assert sinks["strongest_other"] == pytest.approx(2 / 6)
    by_layer = [(layer["site"], layer["keys"], layer["begins"], layer["ends"]) for layer in sinks["layers"]]
    assert by_layer == [(LAYERS[0], 6, 6, 0), (LAYERS[1], 12, 6, 6), (LAYERS[2], 6, 0, 6)]
    assert [layer["with_sink"] for layer in sinks["layers"]] == [0.5, 1.0, 0.5]


def test_massive_tokens_and_their_overlap_with_sinks(tokens: torch.Tensor) -> None:
    detection = Detection()
    detection.start_batch(tokens)
    detection.take("blocks.0.attention.norm", stream({}))
    detection.take(LAYERS[0], attention({(0, 0): 0.9, (1, 2): 0.9}))
    detection.take("blocks.0.feed_forward.norm", stream({(0, 3): 5000.0, (5, 3): -3000.0, (4, 1): 60.0}))
    found = detection.results(str)
    empty, massive = found["massive"]
    assert (empty["site"], empty["count"], empty["top"], empty["max_rest"]) == ("blocks.0.attention.norm", 0, [], 1.0)
    assert "max_massive" not in empty
    assert (massive["count"], massive["max_massive"], massive["max_rest"]) == (6, 3000.0, 60.0)
    assert massive["top"][0] == {"position": 5, "id": 7, "token": "7", "count": 3, "max_abs": 3000.0}
    assert {(t["position"], t["id"], t["count"]) for t in massive["top"]} == {(5, 7, 3), (0, 100, 2), (0, 8, 1)}
    # Per row sinks 0 and 2, massive 0 and 5.
    assert found["overlap"] == {"both": 3, "sinks": 6, "massive": 6, "jaccard": pytest.approx(1 / 3)}


def test_the_criterion_is_that_of_the_statistic() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4, 9, 32, generator=generator) * torch.logspace(-3, 5, 4 * 9).reshape(4, 9, 1)
    h[..., 3] *= torch.logspace(0, 5, 9)
    found = functional.massive_tokens(h.abs().amax(-1), functional.sample_median(h))
    magnitude = h.double().abs()
    median = magnitude.flatten(1).median(-1).values[:, None]
    plain = (magnitude > (1000 * median).clamp_min(100)[..., None]).any(-1)
    assert torch.equal(found, plain)
    counts = [functional.massive_accumulators(sample[None])["tensor_count"] for sample in h]
    assert found.any(1).tolist() == [count > 0 for count in counts]
    assert 0 < found.sum() < found.numel()
    h[0, 0, 0] = torch.nan
    assert not functional.massive_tokens(h.abs().amax(-1), functional.sample_median(h))[0, 0]


def test_the_sample_is_of_the_strongest_residual_sink(tokens: torch.Tensor) -> None:
    detection = Detection()
    sites = {"first": {(t, 1): 900.0 for t in range(LENGTH)}, "weak": {(t, 2): 5.0 for t in range(LENGTH)},
             "strong": {(t, 4): 50.0 for t in range(1, LENGTH)} | {(0, 6): 70.0}}  # fmt: skip
    for batch in range(2):
        detection.start_batch(tokens + batch)
        for site, values in sites.items():
            detection.take(site, stream(values))
    sample = detection.results(str)["sample"]
    assert sample["site"] == "strong"  # the first site reads the bare embedding
    assert {4, 6} <= {*sample["dimensions"]}
    assert len(sample["dimensions"]) <= 24
    assert sample["tokens"] == [str(i) for i in tokens[0].tolist()]
    values = torch.tensor(sample["values"])
    assert values.shape == (LENGTH, len(sample["dimensions"]))
    assert (values[1:, sample["dimensions"].index(4)] == 50).all()


def test_what_is_not_available_is_absent(tokens: torch.Tensor) -> None:
    detection = Detection()
    detection.start_batch(tokens)
    detection.take(LAYERS[0], AttentionRecord())
    assert detection.results(str) == {"epsilon": 0.3, "rows": ROWS}
    detection.take("head.norm", stream({}))
    found = detection.results(str)
    assert "sinks" not in found
    assert "overlap" not in found
    assert "jaccard" not in _overlap_without_any(tokens)


def _overlap_without_any(tokens: torch.Tensor) -> dict[str, float]:
    detection = Detection()
    detection.start_batch(tokens)
    detection.take(LAYERS[0], attention({}))
    detection.take("head.norm", stream({}))
    return detection.results(str)["overlap"]


def test_a_model_read_by_a_reader_agrees_with_its_attention_maps() -> None:
    model = build("baseline").eval()
    ids = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2))
    detection = Detection()
    reader = Reader(sites_of(model), listener=detection.take)
    with reader.reading(), torch.no_grad():
        for batch in ids.split(2):
            detection.start_batch(batch)
            model(batch)
    maps = torch.stack([model.attention_maps(row[None]) for row in ids]).double()  # [B, layers, H, T, T]
    alpha = (maps.sum(-2) / torch.arange(12, 0, -1))[..., :6]
    sinks = detection.results(str)["sinks"]
    assert sinks["with_sink"] == pytest.approx((alpha > 0.3).any(-1).double().mean().item())
    assert sinks["strongest_first"] == pytest.approx((alpha.argmax(-1) == 0).double().mean().item())
    counts = (alpha > 0.3).sum((0, 1, 2))
    assert {p["position"]: p["count"] for p in sinks["positions"]} == {k: n for k, n in enumerate(counts.tolist()) if n}
