"""Norms of the residual stream against plain formulas in float64, and the sandwich around a sublayer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.interop.decoder_export import export
from sinks.models.derf import Derf
from sinks.models.feed_forward import SwiGLU
from sinks.models.gains import GainFreeRMSNorm, ScalarGainRMSNorm, ZeroCenteredRMSNorm
from sinks.models.gated_norm import AmplifyingGatedNorm, GatedNorm
from sinks.models.layer_norm import LayerNorm
from sinks.models.norms import DyT, IdentityNorm, Norm, NormSite, PreAffine, RMSNorm
from sinks.models.seed_norm import SeeDNorm
from sinks.models.taps import taps_of
from sinks.observe import NormRecord, Reader, UpdateRecord, sites_of
from tests.families.variants import NORMS, SMALL, build

WIDTH, EPS = 7, 1e-2


def rms(x: Tensor) -> Tensor:
    return (x.square().sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt()


def standardized(x: Tensor) -> Tensor:
    centered = x - x.sum(-1, keepdim=True) / x.shape[-1]
    return centered / rms(centered)


FORMULAS: dict[type[Norm], Callable[[Norm, Tensor], Tensor]] = {
    RMSNorm: lambda n, x: n.weight * x / rms(x),
    PreAffine: lambda n, x: n.weight * n.pre * x / rms(n.pre * x),
    GainFreeRMSNorm: lambda n, x: x / rms(x),
    ScalarGainRMSNorm: lambda n, x: n.weight[0] * x / rms(x),
    ZeroCenteredRMSNorm: lambda n, x: (n.weight + 1) * x / rms(x),
    LayerNorm: lambda n, x: n.weight * standardized(x) + n.bias,
    SeeDNorm: lambda n, x: (n.weight + torch.tanh(x @ n.beta)[..., None] * n.alpha) * x / rms(x),
    DyT: lambda n, x: n.weight * torch.tanh(n.alpha * x) + n.bias,
    Derf: lambda n, x: n.weight * (2 * torch.special.ndtr((n.alpha * x + n.shift) * 2**0.5) - 1) + n.bias,
}


def norm_of(kind: type[Norm]) -> Norm:
    """In float64, every parameter far from its start."""
    norm = kind(WIDTH) if kind in (DyT, Derf) else kind(WIDTH, eps=EPS)  # type: ignore[call-arg]
    return scrambled(norm)


def assert_formula(norm: Norm, formula: Callable[[Norm, Tensor], Tensor]) -> None:
    """Output and gradients of the input and of every parameter."""
    x, toward = torch.randn(2, 2, 5, WIDTH, dtype=torch.float64)
    wanted = [x.requires_grad_(), *norm.parameters()]
    found, expected = norm(x), formula(norm, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(y, wanted, toward) for y in (found, expected)), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", FORMULAS)
def test_output_and_all_gradients_are_the_formulas(kind: type[Norm]) -> None:
    assert_formula(norm_of(kind), FORMULAS[kind])


def scrambled(norm: Norm) -> Norm:
    with torch.no_grad():
        for parameter in norm.double().parameters():
            parameter.normal_(0.5)
    return norm


@pytest.mark.parametrize("granularity", ["elementwise", "tensorwise"])
@pytest.mark.parametrize("limit", [0.5, 2.0, 4.0])
def test_a_gate_may_amplify(limit: float, granularity: Any) -> None:
    def formula(n: Any, x: Tensor) -> Tensor:
        y = n.norm.weight * x / rms(x)
        h = y @ n.down.weight.T
        return y * limit / (1 + torch.exp(-(h * torch.sigmoid(h)) @ n.up.weight.T))

    gated = AmplifyingGatedNorm(WIDTH, 3, granularity, limit, norm=partial(RMSNorm, eps=EPS))
    assert_formula(scrambled(gated), formula)


def test_a_gate_may_be_all_that_is_between_the_stream_and_a_sublayer() -> None:
    def formula(n: Any, x: Tensor) -> Tensor:
        h = x @ n.down.weight.T
        return x / (1 + torch.exp(-(h * torch.sigmoid(h)) @ n.up.weight.T))

    assert_formula(scrambled(GatedNorm(WIDTH, 3, norm=IdentityNorm)), formula)


def test_an_amplifying_gate_starts_at_half_its_limit_and_steep() -> None:
    gated = AmplifyingGatedNorm(64, init_std=0.02)
    x = torch.randn(2, 5, 64)
    assert (gated.gate(gated.norm(x)) - 1).abs().max() < 0.05
    y = gated(x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in gated.parameters())


@pytest.mark.parametrize("gated", ["norm", "feed_forward_norm", "head_norm"])
def test_each_site_may_have_a_norm_of_its_own(gated: str) -> None:
    """`norm` is that of both sites of a block unless the feed-forward's is given."""
    plain = {"norm": RMSNorm, "feed_forward_norm": RMSNorm, "head_norm": RMSNorm}
    model = CausalLM(11, 12, architecture=SMALL, **plain | {gated: partial(GatedNorm, rank=3)})
    model.configure_model()
    places = {"norm": "attention.norm", "feed_forward_norm": "feed_forward.norm", "head_norm": "head.norm"}
    kinds = {m.site: type(m.norm) for m in model.modules() if isinstance(m, NormSite)}
    assert len(kinds) == 5
    assert {site for site, kind in kinds.items() if kind is GatedNorm} == {s for s in kinds if places[gated] in s}


@pytest.mark.parametrize("kind", [GainFreeRMSNorm, ScalarGainRMSNorm, ZeroCenteredRMSNorm, SeeDNorm])
def test_it_starts_as_an_rms_norm(kind: type[Norm]) -> None:
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(kind(WIDTH)(x), RMSNorm(WIDTH)(x))


def test_a_norm_site_has_what_is_defined_and_no_more() -> None:
    defined = {
        RMSNorm: {"gain", "divided", "weight", "normalized"},
        LayerNorm: {"gain"},
        Derf: {"gain"},
        SeeDNorm: {"divided", "weight", "normalized", "gate", "normed"},
    }
    for kind, names in defined.items():
        norm = norm_of(kind)
        norm.internals = {}
        norm(torch.randn(2, 5, WIDTH, dtype=torch.float64))
        assert norm.internals.keys() == names


def records(model: CausalLM) -> dict[str, NormRecord | UpdateRecord]:
    found: dict[str, NormRecord | UpdateRecord] = {}
    reader = Reader(sites_of(model), listener=found.__setitem__)  # type: ignore[arg-type]
    tokens = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(0))
    with reader.reading(), torch.no_grad():
        model(tokens)
    return found


def test_a_sandwich_norms_what_a_sublayer_adds() -> None:
    model = build("sandwich")
    assert model.decoder is not None
    weight = model.decoder.blocks[1].feed_forward_output_norm.norm.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.normal_()
    found = records(model)
    for layer, part in ((0, "attention"), (1, "feed_forward")):
        norm, update = found[f"blocks.{layer}.{part}.output_norm"], found[f"blocks.{layer}.{part}.update"]
        assert isinstance(norm, NormRecord)
        assert isinstance(update, UpdateRecord)
        assert torch.equal(norm.output, update.update)  # type: ignore[arg-type]
        gain = weight if part == "feed_forward" else torch.ones(16)
        expected = gain * norm.input / (norm.input.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(update.update, expected)


def test_output_norms_are_no_readers_of_the_stream() -> None:
    """The numbers of the stream are of the same five sites, in a sandwich too."""
    model = build("sandwich")
    reader = Reader(sites_of(model))
    assert reader.names["norm"] == Reader(sites_of(build("baseline"))).names["norm"]
    assert reader.names["output_norm"] == [
        f"blocks.{i}.{part}.output_norm" for i in range(2) for part in ("attention", "feed_forward")
    ]
    with reader.reading(), torch.no_grad():
        model(torch.zeros(2, 12, dtype=torch.int64))
    scalars, statistics = reader.summarize()
    assert statistics.arrays["output_norm/gain"].shape == (1, 4, 16)
    assert statistics.arrays["residual/mean_abs"].shape == (1, 5, 16)
    assert scalars["output_norm/max_over_median"] >= 1
    assert not [tap.site for tap in taps_of(build("baseline")) if "output_norm" in tap.site]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sandwich", "output_norm RMSNorm"),
        ("feed-forward-norm-gate", "a feed_forward_norm of its own"),
        ("norm-gate-alone", "norm IdentityNorm"),
        *((name, f"norm {kind.__name__}") for name, kind in NORMS.items()),
    ],
)
def test_transformers_has_no_counterpart(name: str, part: str, tmp_path: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match=f"there is no transformers model with {part}: export a variant without it"):
        export(build(name, feed_forward=SwiGLU), f"{tmp_path}/out")  # with which the baseline is a Llama
