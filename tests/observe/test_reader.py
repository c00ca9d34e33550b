"""The reader sees what the model really does, and the model does what it does unread."""

import math
from pathlib import Path

import pytest
import torch

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.observe import Reader, sites_of
from sinks.observe.groups import GROUPS
from sinks.observe.summary import SCALARS
from sinks.stats import functional
from tests.families.variants import VARIANTS, build


def read(model: CausalLM, tokens: torch.Tensor, times: int = 1) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Statistics of one forward pass, the last of several."""
    reader = Reader(sites_of(model))
    for _ in range(times):
        with reader.reading(), torch.no_grad():
            model(tokens)
        scalars, statistics = reader.summarize(1)
    return scalars, {n: torch.from_numpy(a[0]) for n, a in statistics.arrays.items()}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", VARIANTS)
def test_first_token_mass_agrees_with_the_attention_maps(name: str, tokens: torch.Tensor) -> None:
    model = build(name).eval()
    _, arrays = read(model, tokens)
    maps = torch.stack([model.attention_maps(row[None]) for row in tokens])  # [B, layers, heads, T, T]
    if name in ("sigmoid", "sigmoid+dyt", "clipped-softmax", "softpick"):
        maps = maps / maps.sum(-1, keepdim=True).clamp_min(1e-30)
    expected = maps[..., 1:, 0].mean(dim=(0, 3))
    torch.testing.assert_close(arrays["attention/first_token_mass"], expected, rtol=1e-4, atol=1e-5)
    if name in ("off-by-one", "learnable-sink", "key-value-bias", "key-bias"):
        learned = 1 - maps.sum(-1).mean(dim=(0, 3))
        torch.testing.assert_close(arrays["attention/learned_sink_mass"], learned, rtol=1e-4, atol=1e-5)
    else:
        assert "attention/learned_sink_mass" not in arrays


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_reports_its_statistics(name: str, tokens: torch.Tensor) -> None:
    scalars, arrays = read(build(name).eval(), tokens)
    assert ("attention/gate_mean" in scalars) == (
        (name.endswith("gate") and "norm-gate" not in name) or name == "gated"
    )
    gated = name in ("gated", "gated-norm", "gate-dyt", "seednorm") or "norm-gate" in name
    assert ("norm/gate_mean" in scalars) == gated
    assert ("attention/contribution_share" in scalars) == (
        name not in ("key-value-bias", "key-bias") and "exclusi" not in name
    )
    assert ("norm/bound" in scalars) is False  # no sink dimensions yet
    assert ("residual/clipped_share" in scalars) == name.startswith("clip-")
    assert ("norm/gain_at_sink" in scalars) == (name not in ("no-norm", "seednorm"))
    assert ("output_norm/kurtosis" in scalars) == (name == "sandwich")
    # SeeDNorm's gain starts at exactly one, which correlates with nothing.
    undefined = {"norm/gate_correlation"} if name == "seednorm" else set()
    assert {key for key, value in scalars.items() if not math.isfinite(value)} == undefined
    assert arrays["residual/mean_abs"].shape == (5, 16)


def test_residual_sites_read_the_stream(tokens: torch.Tensor) -> None:
    model = build("baseline").eval()
    _, arrays = read(model, tokens)
    with torch.no_grad():
        embedded = model.decoder.embedding(tokens)  # type: ignore[union-attr]
    expected = functional.residual_statistics(functional.residual_accumulators(embedded))["mean_abs"]
    torch.testing.assert_close(arrays["residual/mean_abs"][0], expected)


def test_gains_are_those_of_the_parameters(tokens: torch.Tensor) -> None:
    model = build("pre-affine")
    norm = model.decoder.blocks[1].feed_forward_norm.norm  # type: ignore[union-attr]
    with torch.no_grad():
        norm.pre.copy_(torch.arange(16.0))
        norm.weight.copy_(-torch.arange(16.0))
    _, arrays = read(model, tokens)
    torch.testing.assert_close(arrays["norm/gain"][3], torch.arange(16.0) ** 2)


def test_a_pattern_that_matches_nothing_is_rejected() -> None:
    with pytest.raises(UserError, match=r"'blocks.9.\*', which matches no site: sites are blocks.0.attention.norm"):
        Reader(sites_of(build("baseline")), patterns=["blocks.0.*", "blocks.9.*"])


def test_patterns_choose_sites(tokens: torch.Tensor) -> None:
    model = build("baseline").eval()
    reader = Reader(sites_of(model), [name for name in GROUPS if name != "contribution"], patterns=["blocks.1.*"])
    with reader.reading(), torch.no_grad():
        model(tokens)
    _, statistics = reader.summarize(1)
    assert statistics.sites["norm"] == ["blocks.1.attention.norm", "blocks.1.feed_forward.norm"]
    assert statistics.sites["attention"] == ["blocks.1.attention"]
    assert statistics.arrays["residual/mean_abs"].shape == (1, 2, 16)
    assert "attention/contribution_share" not in statistics.arrays


def test_sink_dimensions_are_those_of_the_previous_summary(tokens: torch.Tensor) -> None:
    model = build("baseline").eval()
    reader = Reader(sites_of(model))
    found = []
    for _ in range(2):
        with reader.reading(), torch.no_grad():
            model(tokens)
        found.append(reader.summarize(1)[1].arrays)
    assert {"residual/rescale", "norm/bound_max", "residual/sink_dimensions"} <= found[1].keys() - found[0].keys()
    assert found[1]["residual/sink_dimensions"].shape == (1, 5, 1)
    assert (found[1]["residual/sink_dimensions"][0, :, 0] == found[0]["residual/mean_abs"][0].argmax(-1)).all()


@pytest.mark.parametrize("name", ["baseline", "gated", "key-value-bias", "sigmoid", "clipped-softmax"])
def test_contribution_share_agrees_with_the_attention_maps(name: str, tokens: torch.Tensor) -> None:
    model = build(name).eval()
    _, arrays = read(model, tokens)
    if name == "key-value-bias":
        assert "attention/contribution_share" not in arrays
        return
    attention = model.decoder.blocks[0].attention  # type: ignore[union-attr]
    maps = torch.stack([model.attention_maps(row[None])[0] for row in tokens])  # [B, H, T, T]
    with torch.no_grad():
        x = model.decoder.blocks[0].attention_norm(model.decoder.embedding(tokens))  # type: ignore[union-attr]
        v = attention.project(x)[2].repeat_interleave(2, dim=1)
        weight = attention.out.weight.unflatten(1, (4, 6))  # [D, H, head_dim]
        norms = torch.einsum("bhtd,ohd->bhto", v, weight).norm(dim=-1)
    parts = maps * norms[:, :, None]
    totals = parts.sum(-1)[..., 1:]
    expected = (parts[..., 1:, 0] / totals)[totals > 0].mean()
    if (totals > 0).all():
        torch.testing.assert_close(arrays["attention/contribution_share"][0].mean(), expected, rtol=1e-4, atol=1e-5)


def test_every_scalar_is_documented() -> None:
    documented = (Path(__file__).parents[2] / "docs/statistics.md").read_text(encoding="utf-8")
    keys = set(SCALARS)
    for name in VARIANTS:
        keys |= set(read(build(name).eval(), torch.zeros(2, 12, dtype=torch.int64))[0])
    assert sorted(key for key in keys if f"`{key}`" not in documented) == []
