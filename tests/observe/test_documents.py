"""Rows of several documents across which attention runs: what is read at each document's own first token."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.decoder import LayerOptions
from sinks.observe import Reader, by_document, sites_of
from sinks.observe.documents import Documents, documents_of_positions
from sinks.stats import functional
from tests.families.variants import SMALL, build

START = 3
WINDOWED = replace(SMALL, layer_pattern=(LayerOptions(window=3), LayerOptions()))
ATTENTIONS = {
    name: (name, {})
    for name in ("baseline", "sigmoid", "soft-cap", "learnable-sink", "off-by-one", "key-value-bias", "gated")
} | {"window": ("baseline", {"architecture": WINDOWED})}
# A document of one token, one that begins with the row, a row of one document, and a start at the last token.
TOKENS = torch.tensor(
    [
        [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 1],
        [3, 5, 1, 0, 9, 8, 3, 2, 2, 6, 7, 4],
        [1, 2, 0, 4, 5, 6, 7, 8, 9, 0, 1, 2],
        [7, 3, 6, 4, 1, 0, 0, 2, 5, 9, 8, 3],
    ]
)
SPANS = [(0, 0, 3), (0, 3, 4), (0, 4, 12), (1, 0, 6), (1, 6, 12), (2, 0, 12), (3, 0, 1), (3, 1, 11), (3, 11, 12)]


def read(model: CausalLM, batches: list[Tensor], split: bool = True) -> tuple[dict[str, float], dict[str, Tensor]]:
    sites = sites_of(model)
    reader = Reader(by_document(sites, model, START) if split else sites)
    with reader.reading(), torch.no_grad():
        for tokens in batches:
            model(tokens)
    scalars, statistics = reader.summarize()
    return scalars, {name: torch.from_numpy(array[0]) for name, array in statistics.arrays.items()}


def test_splitting_finds_every_document_and_joining_restores_the_rows() -> None:
    x = torch.randn(4, 5, 12, 2, requires_grad=True)
    documents = Documents(TOKENS == START)
    parts = documents.split({"x": x}, dim=2)
    found = [document for part in parts for document in part["x"]]
    expected = [x[row, :, begin:end] for row, begin, end in SPANS]
    assert len(parts) == len({end - begin for _, begin, end in SPANS})  # one for each length
    assert len(found) == len(expected)
    for document in expected:
        assert any(document.shape == own.shape and torch.equal(document, own) for own in found)
    joined = documents.join([part["x"] for part in parts], dim=2)
    assert torch.equal(joined, x)
    joined.square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_documents_by_position() -> None:
    positions = torch.tensor([[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]])
    documents = documents_of_positions(positions)
    assert documents is not None
    assert documents.bounds == [0, 2, 3, 6, 12]
    assert documents_of_positions(torch.arange(6).expand(2, 6)) is None
    for wrong in ([1, 2, 3], [0, 2, 3], [0, 1, 1], [0, 1, 0, 2]):
        with pytest.raises(ValueError, match="not 0, 1, 2"):
            documents_of_positions(torch.tensor([wrong]))


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_agrees_with_the_maps(case: str) -> None:
    name, options = ATTENTIONS[case]
    model = build(name, **options).eval()
    (_, arrays), (_, whole) = read(model, [TOKENS]), read(model, [TOKENS], split=False)
    maps = torch.stack([model.attention_maps(row[None]) for row in TOKENS], dim=1)  # [layers, B, heads, T, T]
    if name == "sigmoid":
        maps = maps / maps.sum(-1, keepdim=True)
    blocks = [maps[:, row, :, begin:end, begin:end] for row, begin, end in SPANS]
    first = torch.cat([block[:, :, 1:, 0] for block in blocks], dim=-1)
    torch.testing.assert_close(arrays["attention/first_token_mass"], first.mean(-1), rtol=1e-4, atol=1e-5)
    alphas = torch.stack([block[..., 0].mean(-1) for block in blocks])  # of each document's first token
    torch.testing.assert_close(arrays["attention/sink_ratio_0.3"], (alphas > 0.3).float().mean(0))
    if "attention/alpha" in whole:
        second = torch.stack([block[..., 1:, 1].mean(-1) for block in blocks if block.shape[-1] > 1])
        found = arrays["attention/alpha"]
        torch.testing.assert_close(found[..., 0], alphas.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[..., 1], second.mean(0), rtol=1e-4, atol=1e-5)
    # What concerns whole rows stays.
    for key in ("entropy", "entropy_share", "logit_max", "logit_mean", "learned_sink_mass"):
        if f"attention/{key}" in whole:
            torch.testing.assert_close(arrays[f"attention/{key}"], whole[f"attention/{key}"])
    assert whole.keys() == arrays.keys()


@pytest.mark.parametrize("name", ["baseline", "sigmoid"])
def test_the_contribution_is_that_of_the_documents_own_first_token(name: str) -> None:
    model = build(name).eval()
    _, arrays = read(model, [TOKENS])
    block = model.decoder.blocks[0]  # type: ignore[union-attr]
    with torch.no_grad():
        x = block.attention_norm(model.decoder.embedding(TOKENS))  # type: ignore[union-attr]
        v = block.attention.project(x)[2].repeat_interleave(2, dim=1)
        weight = block.attention.out.weight.unflatten(1, (4, 6))  # [D, H, head_dim]
        norms = torch.einsum("bhtd,ohd->bhto", v, weight).norm(dim=-1)
    maps = torch.stack([model.attention_maps(row[None])[0] for row in TOKENS])  # [B, H, T, T]
    parts = maps * norms[:, :, None]
    shares = parts / parts.sum(-1, keepdim=True)  # of all that a row brings
    own = torch.cat([shares[row, :, begin + 1 : end, begin] for row, begin, end in SPANS], dim=-1)
    torch.testing.assert_close(arrays["attention/contribution_share"][0], own.mean(-1), rtol=1e-4, atol=1e-5)


def test_masses_that_depend_on_the_whole_row_are_absent() -> None:
    model = build("clipped-softmax").eval()
    (_, arrays), (_, whole) = read(model, [TOKENS]), read(model, [TOKENS], split=False)
    absent = {"first_token_mass", "sink_ratio_0.3", "effective_rescale", "alpha", "sink_gu_0.3", "sink_nyu"}
    absent |= {"contribution_share", "contribution_over_mass"}
    assert {f"attention/{key}" for key in absent} <= whole.keys() - arrays.keys()
    assert {"attention/entropy", "attention/value_norm_ratio", "residual/max_abs"} <= arrays.keys()


def test_the_stream_is_apart_at_every_start() -> None:
    model = build("gated").eval()
    _, arrays = read(model, [TOKENS])
    with torch.no_grad():
        h = model.decoder.embedding(TOKENS)  # type: ignore[union-attr]
    starts = torch.zeros_like(TOKENS, dtype=torch.bool)
    for row, begin, _ in SPANS:
        starts[row, begin] = True
    first, rest = h[starts].abs(), h[~starts].abs()
    torch.testing.assert_close(arrays["residual/mean_abs"][0], rest.mean(0))
    torch.testing.assert_close(arrays["residual/max_abs"][0], torch.stack([first.max(), rest.max()]))
    of_documents = torch.stack([functional.massive_accumulators(h[r : r + 1, b:e])["top_sum"] for r, b, e in SPANS])
    torch.testing.assert_close(arrays["residual/top_over_median"][0], of_documents.mean(0).float())


def test_rows_that_hold_one_document_are_read_as_without() -> None:
    model, tokens = build("gated").eval(), TOKENS[2:3]
    (split, _), (whole, _) = read(model, [tokens]), read(model, [tokens], split=False)
    assert split == pytest.approx(whole, rel=1e-5)


def test_batches_with_other_numbers_of_documents_are_weighted_by_queries() -> None:
    """As on ranks: totals are sums and counts."""
    model = build("gated").eval()
    (whole, _), (parts, _) = read(model, [TOKENS]), read(model, [TOKENS[:1], TOKENS[1:3], TOKENS[3:]])
    assert parts == pytest.approx(whole, rel=1e-5)


def test_nothing_is_left_behind() -> None:
    model = build("baseline").eval()
    read(model, [TOKENS])
    assert model.decoder.report.listener is None  # type: ignore[union-attr]
    with torch.no_grad():
        model(TOKENS)


def test_a_negative_id_and_a_model_without_a_decoder_are_rejected() -> None:
    model = build("baseline")
    with pytest.raises(UserError, match="document_start is -1, but must be at least 0"):
        by_document(sites_of(model), model, -1)
    with pytest.raises(UserError, match="Identity holds 0 decoders"):
        by_document([], nn.Identity(), 0)
