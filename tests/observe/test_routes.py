"""Effective weight, its routes and the effective scale: what the reader sees, against dense float64 computations."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.families import CausalLM
from sinks.models.attention import Attention
from sinks.models.attention_gates import ElementwiseGate, HeadwiseGate, NoGate
from sinks.models.exclusion import ExclusiveSelfAttention, LearnedExclusion, NoExclusion
from sinks.models.normalizers import KeyValueBias, Normalizer, Sigmoid, Softpick
from sinks.observe import AttentionRecord, Reader, sites_of
from sinks.stats import functional
from tests.families.variants import SMALL, VARIANTS, build

# Every part that a route is about, at once.
COMBINED: dict[str, dict[str, Any]] = {
    "exclusion+learned-value+gate": {
        "exclusion": partial(LearnedExclusion, initial=1.4),
        "normalizer": KeyValueBias,
        "attention_gate": HeadwiseGate,
    },
    "exclusion+sigmoid+gate": {
        "exclusion": partial(LearnedExclusion, initial=-0.2),
        "normalizer": Sigmoid,
        "attention_gate": ElementwiseGate,
    },
    "exclusive+softpick": {"exclusion": ExclusiveSelfAttention, "normalizer": Softpick},
}
NAMES = [*VARIANTS, *COMBINED]
LEARNED_VALUE = ("key-value-bias", "key-bias", "exclusion+learned-value+gate")


class OwnToken(Normalizer):
    """Every query attends to its own token."""

    def options(self) -> dict[str, Any]:
        return {"normalizer": lambda scores: torch.eye(scores.shape[-1], dtype=scores.dtype).expand_as(scores)}


# Of numbers about 1, which the attention call returns in float32.
FLOAT32 = 1e-6


def records(name: str) -> tuple[list[tuple[str, Any]], list[Attention], Reader]:
    """Records of a float64 model with large weights, its attention layers, and the reader."""
    model = build(name) if name in VARIANTS else CausalLM(11, 12, architecture=SMALL, **COMBINED[name])
    model.configure_model()
    model = model.eval().double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    tokens = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2))
    found: list[tuple[str, Any]] = []
    reader = Reader(sites_of(model), listener=lambda site, record: found.append((site, record)))
    for _ in range(2):  # the sink dimensions of the second pass are those of the first
        found.clear()
        with reader.reading(), torch.no_grad():
            model(tokens)
        if _ == 0:
            reader.summarize()
    return found, [m for m in model.modules() if isinstance(m, Attention)], reader


def dense_routes(record: AttentionRecord, layer: Attention) -> dict[str, Tensor]:
    """The definitions over all T x T weights [B, H, T, T], query by query and key by key."""
    q, k, v = record.q, record.k, record.v
    assert q is not None
    assert k is not None
    assert v is not None
    a = layer.weights_of(q, k, v)
    batch, heads, length, _ = a.shape
    norms = v.norm(dim=-1)
    median = norms[..., 1:].sort(-1).values[..., (length - 2) // 2, None]
    values = v.repeat_interleave(heads // v.shape[1], 1)
    w = (norms / median).repeat_interleave(heads // v.shape[1], 1)
    out = a @ values
    learned_weight, learned_w = torch.zeros(batch, heads, length, dtype=a.dtype), torch.ones_like(w[..., :1])
    if isinstance(layer.normalizer, KeyValueBias):
        value = layer.normalizer.value.detach()[None].expand(batch, -1, -1)
        learned_weight = 1 - a.sum(-1)
        learned_w = (value.norm(dim=-1, keepdim=True) / median).repeat_interleave(heads // v.shape[1], 1)
        out = out + learned_weight[..., None] * value.repeat_interleave(heads // v.shape[1], 1)[:, :, None]
    strength = torch.zeros(heads, 1, dtype=a.dtype)
    if isinstance(layer.exclusion, LearnedExclusion):
        strength = layer.exclusion.strength.detach()[:, None]
    elif not isinstance(layer.exclusion, NoExclusion):
        strength = torch.ones_like(strength)
    own_w = (1 - strength).abs() * w
    part = (out * values).sum(-1, keepdim=True) / (values * values).sum(-1, keepdim=True)
    out = out - strength[..., None] * part * values
    gain = torch.ones_like(learned_weight)
    if record.gate is not None:
        gate = record.gate if record.gate.dim() == 4 else record.gate[..., None]
        before = out.norm(dim=-1)
        zero = before < 1e-12  # of exclusive self-attention, a query that sees itself alone
        gain = torch.where(zero, torch.nan, (gate * out).norm(dim=-1) / before)
    found = {name: torch.zeros_like(gain) for name in ("lost_first", "lost_own", "lost_other", "excess")}
    used = learned_weight * learned_w
    found["excess"] += learned_weight * (learned_w - 1).clamp_min(0)
    for i in range(length):
        for j in range(i + 1):
            norm = own_w[..., j] if j == i else w[..., j]
            used[..., i] += a[..., i, j] * norm
            route = "lost_first" if j == 0 else "lost_own" if j == i else "lost_other"
            found[route][..., i] += a[..., i, j] * (1 - norm).clamp_min(0)
            found["excess"][..., i] += a[..., i, j] * (norm - 1).clamp_min(0)
    has_value = isinstance(layer.normalizer, KeyValueBias)
    return found | {
        "effective_weight": gain.nan_to_num(1.0) * used,
        "closed": (1 - gain.nan_to_num(1.0)) * used,
        "missing": torch.zeros_like(gain) if has_value else 1 - a.sum(-1),
        "lost_learned": learned_weight * (1 - learned_w).clamp_min(0),
        "first": a[..., 0],
        "own": a.diagonal(dim1=-2, dim2=-1),
        "gain": gain,
    }


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_routes_are_those_of_the_dense_weights_and_add_up(name: str) -> None:
    found, layers, _ = records(name)
    read = [record for _, record in found if isinstance(record, AttentionRecord)]
    assert len(read) == len(layers) > 0
    for record, layer in zip(read, layers, strict=True):
        inputs = record.route_inputs()
        routes, expected = functional.routes(inputs), dense_routes(record, layer)
        scale = max(1.0, float(expected["effective_weight"].abs().max()), float(expected["excess"].max()))
        for route, value in routes.items():
            assert (value - expected[route]).abs().max() < 10 * FLOAT32 * scale, route
        for absent in expected.keys() - routes.keys() - {"first", "own", "gain"}:
            assert not expected[absent].any(), absent
        # With a learned key, the first token's weight is the exponential of a difference of float32 logits.
        logits = record.q @ record.k.repeat_interleave(record.q.shape[1] // record.k.shape[1], 1).mT
        size = max(1.0, float(logits.abs().max())) if layer.normalizer.learned_values else 1.0
        assert (inputs.first - expected["first"]).abs().max() < FLOAT32 * size
        assert (inputs.own - expected["own"]).abs().max() < FLOAT32
        gain = torch.ones(()) if inputs.gain is None else inputs.gain
        assert (gain - expected["gain"]).abs().nan_to_num(0.0).max() < 2 * FLOAT32
        undefined = expected["gain"].isnan()  # the first query of full exclusion, with a gate
        assert undefined.any() == (name == "exclusive+gate")
        assert not undefined[..., 1:].any()
        total = sum(value for route, value in routes.items() if route != "excess") - routes["excess"]
        assert (total - 1).abs().max() < FLOAT32 * scale


@pytest.mark.parametrize("name", NAMES)
def test_means_over_queries_are_those_of_the_routes(name: str) -> None:
    found, layers, reader = records(name)
    read = [record for _, record in found if isinstance(record, AttentionRecord)]
    scalars, statistics = reader.summarize()
    for index, (record, layer) in enumerate(zip(read, layers, strict=True)):
        expected = dense_routes(record, layer)
        for route in ("effective_weight", "missing", "lost_first", "lost_own", "lost_other", "excess"):
            mean = expected[route][..., 1:].mean((0, 2))
            array = torch.from_numpy(statistics.arrays[f"attention/{route}"][0, index])
            torch.testing.assert_close(array.double(), mean, rtol=1e-5, atol=1e-5, msg=route)
    gated = any(layer.gate(torch.zeros(1, 1, layer.config.d_model).double()) is not None for layer in layers)
    assert ("attention/closed" in scalars) == ("attention/gate_gain" in scalars) == gated
    assert ("attention/lost_learned" in scalars) == (name in LEARNED_VALUE)


@pytest.mark.parametrize("name", VARIANTS)
def test_effective_scale_is_what_the_output_shows(name: str) -> None:
    found, _, reader = records(name)
    dimensions = dict(reader.dimensions)
    scalars, statistics = reader.summarize()
    read = {site: record for site, record in found if site in reader.names["norm"]}
    pointwise = {site for site, record in read.items() if record.divided is None or record.gain is None}
    if len(pointwise) == len(read):
        assert "norm/effective_scale" not in scalars
        return
    arrays = {kind: statistics.arrays[f"norm/effective_scale{kind}"][0] for kind in ("", "_cv")}
    for index, (site, record) in enumerate(read.items()):
        if site in pointwise:
            continue
        ordinary = [j for j in range(record.input.shape[-1]) if j not in dimensions[site].tolist()]
        h, y, g = record.input[:, 1:, ordinary], record.output[:, 1:, ordinary], record.gain[ordinary]
        scale = y.norm(dim=-1) / (g * h).norm(dim=-1) * h.square().mean(-1).sqrt()
        assert abs(arrays[""][index] / float(scale.mean()) - 1) < 1e-5
        assert abs(arrays["_cv"][index] - float(scale.std(correction=0) / scale.mean())) < 1e-5


def test_relative_norms_are_absent_where_they_are_not_defined() -> None:
    v = torch.randn(2, 3, 6, 4)
    v[0, 1, 1:4] = 0.0  # the lower median of five norms is the third
    relative = functional.relative_value_norms(v)
    assert relative[0, 1].isnan().all()
    assert relative.isnan().sum() == 6
    assert functional.relative_value_norms(v[:, :, :1]).isnan().all()


def test_a_sink_a_learned_sink_and_a_gate_leave_the_same_weight() -> None:
    """A head that keeps a tenth of its attention, by three means."""
    ones, tokens = torch.ones(1, 1, 4), torch.ones(1, 1, 4)
    empty_first = torch.tensor([[[0.0, 1.0, 1.0, 1.0]]])
    sink = functional.RouteInputs(0.1 * ones, 0 * ones, ones, 0.9 * ones, 0.05 * ones, empty_first)
    learned = functional.RouteInputs(0.1 * ones, 0 * ones, 0.1 * ones, 0 * ones, 0.05 * ones, tokens)
    gate = functional.RouteInputs(ones, 0 * ones, ones, 0 * ones, 0.5 * ones, tokens, gain=0.1 * ones)
    for inputs, route in ((sink, "lost_first"), (learned, "missing"), (gate, "closed")):
        found = {name: float(x[0, 0, 2]) for name, x in functional.routes(inputs).items()}
        assert found["effective_weight"] == pytest.approx(0.1)
        assert found[route] == pytest.approx(0.9)
        assert sum(found.values()) == pytest.approx(1.0)


def test_the_gain_of_a_gate_is_a_ratio_of_norms() -> None:
    """Also where a gate is negative, as one with another activation may be, and where there is nothing to scale."""
    gate, output = torch.tensor([[[-0.5, 0.25]]]), torch.tensor([[[[3.0, 4.0], [1.0, 2.0]]]])
    assert functional.gate_gain(gate, None).tolist() == [[[0.5, 0.25]]]
    by_channel = torch.tensor([[[[-1.0, 0.0], [1.0, 1.0]]]])
    assert functional.gate_gain(by_channel, output)[0, 0].tolist() == pytest.approx([0.6, 1.0])
    assert functional.gate_gain(by_channel, torch.zeros_like(output))[0, 0].tolist() == [1.0, 1.0]


@torch.no_grad()
def test_a_head_that_attends_to_itself_alone_is_off_under_exclusive_self_attention() -> None:
    """The query's own value is taken out; at full strength nothing of the attention is used, and the output is zero."""
    config = SMALL.attention_config("attention", 12)
    layer = Attention(config, OwnToken, NoGate, ExclusiveSelfAttention).double()
    found: list[AttentionRecord] = []
    reader = Reader(sites_of(layer), listener=lambda site, record: found.append(record))
    with reader.reading():
        out = layer(torch.randn(2, 12, 16, dtype=torch.float64))
    assert out.abs().max() < 1e-15
    routes = functional.routes(found[0].route_inputs())
    assert routes["effective_weight"].abs().max() < FLOAT32
    assert (routes["lost_own"][..., 1:] - 1).abs().max() < FLOAT32
    assert (routes["lost_first"][..., 0] - 1).abs().max() < FLOAT32
    scalars, _ = reader.summarize()
    assert scalars["attention/own_token_mass"] == pytest.approx(1)
    assert "attention/contribution_share" not in scalars
