"""A sublayer's update over its residual, against plain torch in float64."""

import pytest
import torch

from sinks.families import CausalLM
from sinks.models.taps import taps_of
from sinks.observe import Reader, Record, UpdateRecord, sites_of
from sinks.stats import functional
from tests.families.variants import VARIANTS, build


def plain(residual: torch.Tensor, update: torch.Tensor) -> dict[str, torch.Tensor]:
    residual, update = residual.double(), update.double()
    ratio = update.norm(dim=-1) / residual.norm(dim=-1)
    cosine = (residual * update).sum(-1) / (update.norm(dim=-1) * residual.norm(dim=-1))
    named = {"ratio": ratio, "cosine": cosine}
    return {n: x[:, 1:].mean() for n, x in named.items()} | {
        f"{n}_first_token": x[:, 0].mean() for n, x in named.items()
    }


def of(residual: torch.Tensor, update: torch.Tensor) -> dict[str, torch.Tensor]:
    return functional.update_statistics(functional.update_accumulators(residual, update))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, x in expected.items():
        torch.testing.assert_close(found[name].double(), x, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 7, 11), (2, 33, 16)])
def test_statistics_agree_with_a_plain_computation(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    residual, update = (torch.randn(shape, generator=generator) for _ in range(2))
    assert_equal(of(residual, update), plain(residual, update))


def test_writing_along_and_against_by_hand() -> None:
    residual = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])[None]
    update = torch.tensor([[30.0, 40.0], [-0.5, 0.0], [1.0, 0.0]])[None]
    found = {name: float(x) for name, x in of(residual, update).items()}
    assert found == pytest.approx(
        {"ratio": 0.5, "cosine": -0.5, "ratio_first_token": 10, "cosine_first_token": 1, "nonfinite": 0}
    )


def test_tokens_without_a_value_are_left_out() -> None:
    residual = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])[None]
    update = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])[None]
    found = of(residual, update)
    assert (found["ratio"], found["cosine"]) == (1, 1)
    assert found["ratio_first_token"].isnan()
    assert found["cosine_first_token"].isnan()


def records(model: CausalLM, tokens: torch.Tensor, reader: Reader) -> None:
    with reader.reading(), torch.no_grad():
        model(tokens)


@pytest.mark.parametrize("name", [name for name in ("baseline", "gated", "clip-stream") if name in VARIANTS])
def test_a_block_reports_what_its_sublayers_add(name: str) -> None:
    model, tokens = build(name).eval(), torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2))
    taps: dict[str, torch.Tensor] = {}
    for tap in taps_of(model):
        tap.listener = taps.__setitem__
    found: dict[str, Record] = {}
    reader = Reader(sites_of(model), ["update"], listener=found.__setitem__)
    records(model, tokens, reader)
    assert (
        list(found)
        == reader.names["update"]
        == [f"blocks.{i}.{part}.update" for i in range(2) for part in ("attention", "feed_forward")]
    )
    arrays = reader.summarize()[1].arrays
    for i, (site, record) in enumerate(found.items()):
        assert isinstance(record, UpdateRecord)
        before, after = (".attention.norm.input", ".residual.mid") if i % 2 == 0 else (".residual.mid", ".residual.out")
        block = site.rsplit(".", 2)[0]
        torch.testing.assert_close(record.residual, taps[block + before], rtol=0, atol=0)
        if name != "clip-stream":
            torch.testing.assert_close(record.residual + record.update, taps[block + after], rtol=0, atol=0)
        expected = plain(record.residual, record.update)
        assert_equal({n: torch.tensor(arrays[f"update/{n}"][0, i]) for n in expected}, expected)


def test_a_listener_gets_every_record_once() -> None:
    model, tokens = build("baseline").eval(), torch.zeros(2, 12, dtype=torch.int64)
    found: list[tuple[str, str]] = []
    records(
        model,
        tokens,
        Reader(sites_of(model), listener=lambda site, record: found.append((site, type(record).__name__))),
    )
    kinds = {"norm": "NormRecord", "attention": "AttentionRecord", "update": "UpdateRecord"}
    assert found == [(site.name, kinds[site.kind]) for site in sites_of(model)]
