"""Taps that report and taps that edit; the documented sites exist, and a wrapper is never bypassed."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention_gates import ElementwiseGate
from sinks.models.gated_norm import GatedNorm
from sinks.models.norms import DyT, Norm, PreAffine, RMSNorm
from sinks.models.taps import editing, taps_of
from sinks.observe import NormRecord, Reader, sites_of
from tests.families.variants import RESIDUAL_SIDE, SMALL, VARIANTS, build

NORMS = {
    "rms": RMSNorm,
    "pre-affine": PreAffine,
    "gated": partial(GatedNorm, rank=3),
    "gated pre-affine": partial(GatedNorm, rank=3, norm=PreAffine),
    "gated dyt": partial(GatedNorm, rank=3, norm=DyT),
    "tensorwise": partial(GatedNorm, rank=3, granularity="tensorwise"),
}
BLOCK = (
    "attention.norm.input", "attention.norm.gate", "attention.norm.output", "attention.query", "attention.key",
    "attention.value", "attention.gate", "attention.out.input", "residual.mid", "feed_forward.norm.input",
    "feed_forward.norm.gate", "feed_forward.norm.output", "feed_forward.down.input", "residual.out",
)  # fmt: skip


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(0))


def gated() -> CausalLM:
    model = CausalLM(
        11, 12, architecture=SMALL, norm=partial(GatedNorm, rank=3), head_norm=RMSNorm, attention_gate=ElementwiseGate
    )
    model.configure_model()
    return model.eval()


def test_every_site_exists_and_is_visited_in_order(tokens: Tensor) -> None:
    model, seen = gated(), []
    for tap in taps_of(model):
        tap.listener = lambda site, value: seen.append(site)
    model(tokens)
    expected = ["embedding", *(f"blocks.{i}.{site}" for i in range(2) for site in BLOCK)]
    expected += ["head.norm.input", "head.norm.output"]
    assert sorted(seen) == sorted(expected)
    assert seen[0] == "embedding"
    assert seen.index("blocks.0.residual.out") < seen.index("blocks.1.attention.norm.input")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NORMS)
def test_reported_internals_are_those_of_the_forward_pass(name: str, dtype: torch.dtype) -> None:
    """The kernel of GatedNorm returns neither gate nor normed: those of the reader must equal the kernel's."""
    norm: Norm = NORMS[name](16)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    norm = norm.to(dtype)
    norms = [m for m in norm.modules() if isinstance(m, Norm)]
    internals: dict[str, Tensor] = {}
    for part in norms:
        part.internals = internals
    x = torch.randn(2, 5, 16, dtype=dtype)
    y = norm(x)
    if "gate" in internals:
        torch.testing.assert_close(internals["gate"] * internals["normed"], y)
    if "normalized" in internals:
        divided = internals["divided"]
        rms = (divided.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(internals["weight"] * divided / rms, internals["normalized"])
        effective = internals["gain"] * x / rms
        torch.testing.assert_close(effective, internals.get("normed", y))


@pytest.mark.parametrize("place", ["down", "up", "norm"])
def test_the_gated_norm_kernel_does_not_bypass_wrapped_weights(place: str) -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.weight = getattr(inner, "weight", None)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    plain = GatedNorm(16, rank=3, init_std=0.5)
    x = torch.randn(2, 5, 16)
    y = plain.norm(x) * (2 if place == "norm" else 1)
    down = plain.down(y) * (2 if place == "down" else 1)
    up = plain.up(nn.functional.silu(down)) * (2 if place == "up" else 1)
    setattr(plain, place, Doubled(getattr(plain, place)))
    torch.testing.assert_close(plain(x), y * torch.sigmoid(up + plain.offset))


def test_an_overridden_gate_is_what_the_forward_uses() -> None:
    class Doubled(GatedNorm):
        def gate(self, y: Tensor) -> Tensor:
            return 2 * super().gate(y)

    norm, x = Doubled(16, rank=3), torch.randn(2, 5, 16)
    torch.testing.assert_close(norm(x), 2 * norm.norm(x) * GatedNorm.gate(norm, norm.norm(x)))


def test_a_wrapped_output_projection_has_no_contribution_statistics(tokens: Tensor) -> None:
    model = gated()
    attention = model.decoder.blocks[0].attention  # type: ignore[union-attr]
    attention.out = nn.Sequential(attention.out)
    reader = Reader(sites_of(model))
    with reader.reading(), torch.no_grad():
        model(tokens)
    arrays = reader.summarize()[1].arrays
    assert torch.from_numpy(arrays["attention/contribution_share"][0, 0]).isnan().all()
    assert not torch.from_numpy(arrays["attention/contribution_share"][0, 1]).isnan().any()


@torch.no_grad()
def test_the_model_continues_with_the_edited_value(tokens: Tensor) -> None:
    model = gated()
    before = model(tokens)
    sites = [tap.site for tap in taps_of(model)]
    with editing(model, dict.fromkeys(sites, lambda x: x)):
        torch.testing.assert_close(model(tokens), before)
    for site in sites:
        with editing(model, {site: torch.zeros_like}):
            changed = model(tokens)
        assert changed.shape == before.shape
        # The bias of nothing is nothing: an embedding of zeros gives no logits, whatever else is edited.
        assert not torch.equal(changed, before)
    assert torch.equal(model(tokens), before)
    with editing(model, {"embedding": torch.zeros_like}):
        assert not model(tokens).any()


@torch.no_grad()
def test_a_reader_gets_the_edited_value(tokens: Tensor) -> None:
    model, found = gated(), []
    site = next(site for site in sites_of(model) if site.name == "blocks.1.attention.norm")
    site.listen(found.append)
    with editing(
        model, {"blocks.1.attention.norm.input": lambda x: x * 0 + 3, "blocks.1.attention.norm.gate": torch.ones_like}
    ):
        model(tokens)
    (record,) = found
    assert isinstance(record, NormRecord)
    assert (record.input == 3).all()
    assert record.gate is not None
    assert (record.gate == 1).all()
    torch.testing.assert_close(record.output, record.normed)


def test_an_unknown_site_is_rejected_with_the_nearest() -> None:
    with (
        pytest.raises(
            UserError, match=r"'blocks.0.attention.norm.inputs' to edit: sites are e.g. blocks.0.attention.norm.input"
        ),
        editing(gated(), {"blocks.0.attention.norm.inputs": torch.zeros_like}),
    ):
        pass


@pytest.mark.parametrize("backend", ["flash", "reference", "triton"])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in VARIANTS
        if name not in (*RESIDUAL_SIDE, "clipped-softmax", "soft-cap", "sigmoid", "sigmoid+dyt", "softpick")
    ],
)
@torch.no_grad()
def test_reading_changes_nothing_on_any_backend(
    name: str, backend: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sinks.models.normalizers as normalizers

    plain = normalizers.attention
    monkeypatch.setattr(normalizers, "attention", partial(plain, backend=backend))
    model = build(name).eval()
    unread = model(tokens)
    with Reader(sites_of(model)).reading():
        read = model(tokens)
    assert torch.equal(read, unread)
