"""Edits at norms: nothing edited changes no bit, and each edit is its formula, in float64 and in plain torch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.models.gated_norm import GatedNorm
from sinks.models.norms import DyT, IdentityNorm, PreAffine, RMSNorm
from sinks.probes.cuts import EDITS, Constants, Cut
from sinks.probes.hooked_places import hooked_places
from sinks.probes.moments import Moments
from sinks.probes.own_places import own_places
from sinks.probes.places import Places
from sinks.probes.residual import SINK as OF_SINK
from sinks.probes.residual import calibrate, places_of, residual
from sinks.probes.scorer import Scorer
from sinks.probes.tokens import TOKENS, kinds_of_tokens
from tests.probes.models import SINK, decoder, gated_llama, llama, rows

NORMS: dict[str, Any] = {"rms": RMSNorm, "pre-affine": PreAffine, "gated": GatedNorm, "dyt": DyT, "none": IdentityNorm}


def own(norm: str = "rms") -> tuple[Places, Callable[[Tensor], Tensor]]:
    model = decoder(norm=NORMS[norm], head_norm=NORMS[norm])
    return own_places(model), model


def hooked(name: str = "Llama") -> tuple[Places, Callable[[Tensor], Tensor]]:
    model = gated_llama() if name == "gated" else llama(name)
    return hooked_places(model), lambda tokens: model(tokens, use_cache=False).logits


MODELS: dict[str, Callable[[], tuple[Places, Callable[[Tensor], Tensor]]]] = {
    **{f"own-{name}": lambda name=name: own(name) for name in NORMS},  # type: ignore[misc]
    **{name: lambda name=name: hooked(name) for name in ("Llama", "gated", "Gemma 3", "gpt-oss", "OLMo 2", "OPT")},  # type: ignore[misc]
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("model", MODELS)
def test_no_dimension_edited_changes_no_bit(model: str, edit: str) -> None:
    places, logits = MODELS[model]()
    tokens = rows()[:, :-1]
    with torch.no_grad():
        before = logits(tokens)
        moments = calibrate(places.norms, lambda: logits(tokens))
        found = residual(places.norms, moments, 10.0, None, 0, 0, 8.0)
        found = replace(found, dimensions={OF_SINK: {name: [] for name in moments}})
        for of_tokens in TOKENS:
            with found.edited(edit, places.norms, of_tokens):
                assert torch.equal(logits(tokens), before)
        # And with dimensions it does change; a pointwise norm has no denominator.
        with residual(places.norms, moments, 10.0, SINK, 0, 0, 1.0).edited(edit, places.norms, "all"):
            changed = not torch.equal(logits(tokens), before)
    assert changed == (model not in ("own-dyt", "own-none") or "denominator" not in edit)
    assert torch.equal(logits(tokens), before)


def test_a_gate_after_a_norm_is_a_part_of_it() -> None:
    """What is cut of y is cut behind the gate, and the denominator's edit holds what the gate reads."""
    model = gated_llama()
    places = hooked_places(model)
    (norm,) = [norm for norm in places.norms if norm.name == "blocks.1.attention.norm"]
    tokens, layer = rows()[:, :-1], model.model.layers[1]
    seen: list[Tensor] = []
    layer.input_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer.self_attn.q_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        found = residual([norm], calibrate([norm], lambda: model(tokens)), 10.0, SINK, 0, 0, 8.0)
        seen.clear()
        with found.edited("direct", [norm], "later"):
            model(tokens)
        with found.edited("denominator", [norm], "later"):
            model(tokens)
        h, direct, _, denominator = seen
        cut = h.clone()
        cut[..., list(SINK)] = 0
        y, without = layer.input_layernorm.forward(h), layer.input_layernorm.forward(cut)
    others = [j for j in range(32) if j not in SINK]
    assert torch.equal(direct[:, 1:, others], y[:, 1:, others])
    assert bool((direct[:, 1:, list(SINK)] == 0).all())
    assert torch.equal(denominator[:, 1:, others], without[:, 1:, others])
    assert torch.equal(denominator[:, 1:, list(SINK)], y[:, 1:, list(SINK)])
    assert torch.equal(denominator[:, 0], y[:, 0])


def plain(edit: str, h: Tensor, gain: Tensor, eps: float, s: list[int], means: dict[str, Tensor], c: float) -> Tensor:
    """The table of sinks.probes.cuts for an RMSNorm, written out token by token."""
    out = torch.empty_like(h)
    for t, x in enumerate(h):
        others = [j for j in range(len(x)) if j not in s]
        mean_square = x.square().sum() / len(x)
        y = gain * x / (mean_square + eps).sqrt()
        if edit in ("direct", "constant-direct"):
            y[s] = 0 if edit == "direct" else means["y"][s]
        elif edit in ("denominator", "constant-denominator"):
            kept = x[others].square().sum() + (0 if edit == "denominator" else means["square"][s].sum())
            y[others] = gain[others] * x[others] / (kept / len(x) + eps).sqrt()
        else:
            z = x.clone()
            limit = c * (x[others].square().sum() / len(others)).sqrt()
            z[s] = {"mean": means["h"][s], "zero": torch.zeros_like(z[s]), "clamp": z[s].clamp(-limit, limit)}[edit]
            y = gain * z / (z.square().mean() + eps).sqrt()
        out[t] = y
    return out


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_an_rms_norm_are_their_formulas(edit: str) -> None:
    torch.manual_seed(3)
    norm = RMSNorm(10, 1e-3).double()
    torch.nn.init.normal_(norm.weight)
    h, s = torch.randn(5, 10, dtype=torch.float64), [2, 7]
    h[:, 2] += 20
    with torch.no_grad():
        y = norm(h)
        means = {"h": h.mean(0), "y": y.mean(0), "square": h.square().mean(0)}
        spread = [means[name][s].expand(1, 5, 2) for name in ("h", "y", "square")]
        found = EDITS[edit](Cut(h[None], y[None], norm, torch.tensor(s), Constants(*spread), 1.5))
        expected = plain(edit, h, norm.weight, 1e-3, s, means, 1.5)
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-12)
    assert (expected - y).abs().max() > 0.01


def test_kinds_of_tokens() -> None:
    """A token is massive from 3 medians on; token 0 never counts in the median."""
    norms = torch.tensor([[500.0, 1.0, 2.0, 3.0, 6.1], [0.1, 1.0, 1.0, 3.0, 3.1]])
    h = torch.stack([norms, torch.zeros_like(norms)], dim=-1)
    found = kinds_of_tokens(h)
    assert found["massive"].tolist() == [[False] * 4 + [True]] * 2
    assert found["first"].nonzero().tolist() == [[0, 0], [1, 0]]
    assert torch.equal(found["later"], ~found["first"])
    assert torch.equal(found["ordinary"], ~found["first"] & ~found["massive"])


@pytest.mark.parametrize("of_tokens", TOKENS)
@pytest.mark.parametrize("hugging_face", [False, True])
def test_an_edit_acts_on_its_tokens_with_their_means(hugging_face: bool, of_tokens: str) -> None:
    """The head's norm alone: what the head then reads is that of a plain loop over tokens."""
    model = llama() if hugging_face else decoder()
    places = hooked_places(model) if hugging_face else own_places(model)
    tokens, calibration = rows()[:, :-1], rows(6, seed=3)[:, :-1]
    (norm,) = [norm for norm in places.norms if norm.kind == "head"]
    stream: list[Tensor] = []
    read: list[Tensor] = []

    def see(h: Tensor, y: Tensor, norm: object) -> Tensor:
        stream.append(h)
        return y

    (model.lm_head if hugging_face else model.head).register_forward_pre_hook(lambda head, args: read.append(args[0]))
    with torch.no_grad():
        moments = calibrate([norm], lambda: [model(batch) for batch in calibration.split(4)])
        read.clear()
        with norm.edited(see):
            model(calibration)
            model(tokens)
        with residual([norm], moments, 10.0, SINK, 0, 0, 8.0).edited("constant-direct", [norm], of_tokens):
            model(tokens)
    calibrated, y, edited = read
    known, kinds = (kinds_of_tokens(h) for h in stream)
    expected = y.clone()
    for kind in TOKENS[of_tokens]:
        mean = calibrated[known[kind]].mean(0)
        for row, t in kinds[kind].nonzero().tolist():
            expected[row, t, list(SINK)] = mean[list(SINK)]
    assert not torch.equal(expected, y)
    torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)


def test_sink_dimensions_and_random_ones() -> None:
    torch.manual_seed(0)
    h = torch.randn(2, 50, 32, dtype=torch.float64)
    h[..., 5] += 40
    h[:, 0, 9] = 1e6  # of token 0 alone
    moments = Moments()
    moments.add(h[:1], h[:1])
    moments.add(h[1:], h[1:])
    mean = h[:, 1:].abs().mean((0, 1))
    torch.testing.assert_close(moments.scores, mean / mean.median(), rtol=1e-12, atol=0)
    assert moments.sink_dimensions(10.0) == [5]
    draws = [moments.random_dimensions([5], torch.Generator().manual_seed(seed)) for seed in range(40)]
    middle = set(mean.argsort()[8:24].tolist())
    assert {j for draw in draws for j in draw} <= middle - {5}
    assert len({tuple(draw) for draw in draws}) > 5
    assert draws[0] == moments.random_dimensions([5], torch.Generator().manual_seed(0))
    many = list(range(16))  # more than the middle half has besides
    others = moments.random_dimensions(many, torch.Generator().manual_seed(0))
    assert sorted(others) == list(range(16, 32))


def test_a_control_edits_its_own_dimensions() -> None:
    places, logits = own()
    tokens = rows()[:, :-1]
    with torch.no_grad():
        moments = calibrate(places.norms, lambda: logits(tokens))
        found = residual(places.norms, moments, 10.0, SINK, 2, 0, 8.0)
        first, second = (found.dimensions[of] for of in ("0", "1"))
        assert first != second
        assert all(len(chosen) == 2 and not {*chosen} & {*SINK} for chosen in (*first.values(), *second.values()))
        with found.edited("zero", places.norms, "all", "1"):
            control = logits(tokens)
        same = replace(found, dimensions={OF_SINK: second})
        with same.edited("zero", places.norms, "all"):
            assert torch.equal(logits(tokens), control)
        more = residual(places.norms, moments, 10.0, SINK, 3, 0, 8.0)
        assert {of: more.dimensions[of] for of in found.dimensions} == found.dimensions
        assert residual(places.norms, moments, 10.0, SINK, 2, 1, 8.0).dimensions["0"] != first


def test_groups_of_sites() -> None:
    places, _ = own()
    assert [norm.name for norm in places_of("all", places.norms, 2)] == [
        "blocks.2.attention.norm",
        "blocks.2.feed_forward.norm",
        "head.norm",
    ]
    assert {norm.kind for norm in places_of("blocks", places.norms, 0)} == {"attention", "feed_forward"}
    assert [norm.layer for norm in places_of("feed_forward", places.norms, 0)] == [0, 1, 2]
    assert [norm.name for norm in places_of("blocks.[01].attention.norm", places.norms, 1)] == [
        "blocks.1.attention.norm"
    ]
    with pytest.raises(
        UserError, match="'mlp' from layer 0 on is none of the model's 7 sites: give all, each or a name"
    ):
        places_of("mlp", places.norms, 0)


@pytest.mark.parametrize("model", ["own-rms", "Llama", "Gemma 3"])
def test_a_pass_from_a_later_block_on_gives_the_same_loss(model: str) -> None:
    places, logits = MODELS[model]()
    tokens, calls = rows(), [0]
    moments = calibrate(places.norms, lambda: logits(tokens[:, :-1]))
    found = residual(places.norms, moments, 10.0, SINK, 0, 0, 8.0)
    inside = next(places.blocks[0].children())
    inside.register_forward_hook(lambda *given: calls.__setitem__(0, calls[0] + 1))
    scorer = Scorer(logits, places.blocks, tokens, 3, [2, len(places.blocks)])
    plain_scorer = Scorer(logits, places.blocks, tokens, 4)
    assert torch.equal(scorer.base, plain_scorer.base)
    for norm in (norm for norm in places.norms if norm.layer >= 2):
        with found.edited("direct", [norm], "all"):
            expected = plain_scorer.losses()
            calls[0] = 0
            assert torch.equal(scorer.losses(norm.layer), expected)
            assert calls[0] == 0
    assert torch.equal(scorer.losses(), scorer.base)


def test_blocks_that_share_more_than_the_stream_run_each_time() -> None:
    """A block that leaves something for a later one, which the kept stream does not hold."""
    places, logits = own()
    first, last = places.blocks[0], places.blocks[-1]
    left: list[Tensor] = []
    first.attention.register_forward_hook(lambda module, args, output: left.append(output))
    last.register_forward_hook(lambda module, args, output: output + left.pop() if left else output)
    scorer = Scorer(logits, places.blocks, rows(), 2, [2])
    assert torch.equal(scorer.losses(2), scorer.base)
