"""The callback reads what the model really does, and costs nothing while it is off."""

import math
from pathlib import Path
from typing import Any, get_args

import lightning
import pytest
import torch

from sinks.callbacks import SinkStatistics
from sinks.callbacks.groups import GROUPS
from sinks.callbacks.statistics import GroupName
from sinks.callbacks.summary import SCALARS, summarise
from sinks.errors import UserError
from sinks.families import CausalLM, Gated
from sinks.models.taps import taps_of
from sinks.stats import functional
from tests.families.variants import VARIANTS, build


def read(model: CausalLM, tokens: torch.Tensor) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Statistics of one forward pass."""
    callback = SinkStatistics()
    callback._attach(model)
    callback._switch(True)
    with torch.no_grad():
        model(tokens)
    callback._switch(False)
    scalars, statistics = summarise(callback._totals(), callback._sites, {}, 1)
    return scalars, {n: torch.from_numpy(a[0]) for n, a in statistics.arrays.items()}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", VARIANTS)
def test_first_token_mass_agrees_with_the_attention_maps(name: str, tokens: torch.Tensor) -> None:
    model = build(name).eval()
    _, arrays = read(model, tokens)
    maps = torch.stack([model.attention_maps(row[None]) for row in tokens])  # [B, layers, heads, T, T]
    if name in ("sigmoid", "sigmoid+dyt", "clipped-softmax"):
        maps = maps / maps.sum(-1, keepdim=True).clamp_min(1e-30)
    expected = maps[..., 1:, 0].mean(dim=(0, 3))
    torch.testing.assert_close(arrays["attention/first_token_mass"], expected, rtol=1e-4, atol=1e-5)
    if name in ("off-by-one", "learnable-sink", "key-value-bias", "key-bias"):
        learned = 1 - maps.sum(-1).mean(dim=(0, 3))
        torch.testing.assert_close(arrays["attention/learned_sink_mass"], learned, rtol=1e-4, atol=1e-5)
    else:
        assert "attention/learned_sink_mass" not in arrays


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_reports_what_it_has(name: str, tokens: torch.Tensor) -> None:
    scalars, arrays = read(build(name).eval(), tokens)
    assert ("attention/gate_mean" in scalars) == (
        VARIANTS[name][1].get("attention_gate", "elementwise") != "none" and VARIANTS[name][0] is Gated
    )
    assert ("norm/gate_mean" in scalars) == (name in ("gated", "gated-norm", "gate-dyt") or "norm-gate" in name)
    assert ("attention/contribution_share" in scalars) == (name not in ("key-value-bias", "key-bias"))
    assert ("norm/bound" in scalars) is False  # no sink dimensions yet
    assert ("residual/clipped_share" in scalars) == (name in ("clip-stream", "clip-norm-input"))
    assert ("norm/gain_at_sink" in scalars) == (name != "no-norm")
    assert all(math.isfinite(value) for value in scalars.values())
    assert arrays["residual/mean_abs"].shape == (5, 16)


def test_residual_sites_see_the_stream(tokens: torch.Tensor) -> None:
    model = build("baseline").eval()
    _, arrays = read(model, tokens)
    with torch.no_grad():
        embedded = model.decoder.embedding(tokens)  # type: ignore[union-attr]
    expected = functional.residual_statistics(functional.residual_moments(embedded))["mean_abs"]
    torch.testing.assert_close(arrays["residual/mean_abs"][0], expected)


def test_gains_are_those_of_the_parameters(tokens: torch.Tensor) -> None:
    model = build("pre-affine")
    norm = model.decoder.blocks[1].feed_forward_norm.norm  # type: ignore[union-attr]
    with torch.no_grad():
        norm.pre.copy_(torch.arange(16.0))
        norm.weight.copy_(-torch.arange(16.0))
    _, arrays = read(model, tokens)
    torch.testing.assert_close(arrays["norm/gain"][3], torch.arange(16.0) ** 2)


def test_taps_are_off_before_backward_and_sampled_at_the_interval() -> None:
    model = build("baseline")
    seen: list[tuple[int, bool, bool]] = []

    class Watch(lightning.Callback):
        def on_before_backward(
            self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: object
        ) -> None:
            seen.append((trainer.global_step + 1, callback._sampling, any(tap.on for tap in taps_of(module))))

    callback = SinkStatistics(interval=3)
    rows = torch.randint(0, 11, (40, 13))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=7,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, Watch()],
        limit_val_batches=0,
    )
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=2))  # type: ignore[arg-type]
    assert not any(on for _, _, on in seen)
    assert [sampling for _, sampling, _ in seen] == [
        micro == 1 and (step == 1 or step % 3 == 0) for step in range(1, 8) for micro in (0, 1)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval is 0, but must be at least 1"),
        ({"start": 0}, "start is 0"),
        ({"start": 10, "stop": 5}, "stop is 5, but must not be below start = 10"),
        ({"leave_out": ["residual"]}, "the others lean on it"),
        ({"leave_out": ["nothing"]}, "'nothing', but groups are residual"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SinkStatistics(**options)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"'blocks.9.\*', which matches no site: sites are blocks.0.attention.norm"):
        SinkStatistics(sites=["blocks.0.*", "blocks.9.*"])._attach(build("baseline"))


def test_patterns_choose_sites(tokens: torch.Tensor) -> None:
    model = build("baseline").eval()
    callback = SinkStatistics(sites=["blocks.1.*"], leave_out=["keys", "contribution"])
    callback._attach(model)
    callback._switch(True)
    with torch.no_grad():
        model(tokens)
    _, statistics = summarise(callback._totals(), callback._sites, {}, 1)
    assert statistics.sites["norm"] == ["blocks.1.attention.norm", "blocks.1.feed_forward.norm"]
    assert statistics.sites["attention"] == ["blocks.1.attention"]
    assert statistics.arrays["residual/mean_abs"].shape == (1, 2, 16)
    assert "attention/contribution_share" not in statistics.arrays


def test_group_names_on_the_command_line_are_the_groups() -> None:
    assert set(get_args(GroupName)) == set(GROUPS)


def test_sink_dimensions_are_those_of_the_previous_logged_step(tokens: torch.Tensor) -> None:
    model = build("baseline").eval()
    callback = SinkStatistics()
    callback._attach(model)
    readings = []
    for _ in range(2):
        callback._moments = {}
        callback._switch(True)
        with torch.no_grad():
            model(tokens)
        callback._switch(False)
        totals = callback._totals()
        readings.append({group for _, group in totals})
        callback._choose_dimensions(totals, torch.device("cpu"))
    assert readings[1] - readings[0] == {"rescale", "bound"}
    resumed = SinkStatistics()
    resumed.load_state_dict(callback.state_dict())
    assert resumed._dimensions == callback._dimensions
    _, statistics = summarise(totals, callback._sites, callback._dimensions, 1)
    assert statistics.arrays["residual/sink_dimensions"].shape == (1, 5, 1)


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
