"""Edits of attention: nothing edited changes no bit, and each edit is its formula, in float64 and in plain torch."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.models.attention_gates import (
    ActivatedGate,
    ElementwiseGate,
    HeadwiseGate,
    IdentityHeadwiseGate,
    TensorwiseGate,
)
from sinks.models.normalizers import ClippedSoftmax, KeyValueBias, LearnableSink, Sigmoid, SoftCap
from sinks.observe.detection import Detection
from sinks.probes.attention import (
    DETECTED,
    FIRST,
    OWN,
    AttentionSide,
    Calibration,
    calibrate_attention,
    sinks_of,
    stable_rank,
)
from sinks.probes.hooked_places import hooked_places
from sinks.probes.own_places import own_places
from sinks.probes.places import Attended, AttentionEdit, Places
from sinks.probes.removals import EDITS, GATE_MEAN, GATE_ONE, LEARNED, Removal, as_much, mass_on, order_of_keys
from sinks.probes.scorer import Scorer
from tests.probes.models import decoder, llama, rows

OWN_PARTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "learnable-sink": {"normalizer": LearnableSink},
    "key-value-bias": {"normalizer": KeyValueBias},
    "sigmoid": {"normalizer": Sigmoid},
    "clipped": {"normalizer": ClippedSoftmax},
    "soft-cap": {"normalizer": SoftCap},
    "headwise": {"attention_gate": HeadwiseGate},
    "elementwise": {"attention_gate": ElementwiseGate},
    "identity-gate": {"attention_gate": IdentityHeadwiseGate},
    "tensorwise": {"attention_gate": TensorwiseGate},
    "silu": {"attention_gate": partial(ActivatedGate, activation="silu")},
}
FAMILIES = ("Llama", "Gemma 2", "gpt-oss", "Qwen3-Next")
Built = tuple[Places, Callable[[Tensor], Tensor]]


def build(name: str) -> Built:
    if name in OWN_PARTS:
        model = decoder(**OWN_PARTS[name])
        return own_places(model), model
    hugging_face = llama(name)
    return hooked_places(hugging_face), lambda tokens: hugging_face(tokens, use_cache=False).logits


def side_of(built: Built, tokens: Tensor, which: str, calibration: Tensor | None = None) -> AttentionSide:
    """Calibrated, with the sinks of a batch of tokens."""
    places, logits = built
    read = tokens if calibration is None else calibration
    calibrations = calibrate_attention(places.attention, which, lambda: logits(read), 0)
    side = AttentionSide(places.attention, which, calibrations, 0)
    detection = Detection()
    detection.start_batch(tokens)
    with side.finding(detection), torch.no_grad():
        logits(tokens)
    return side


def see(built: Built, tokens: Tensor) -> tuple[dict[str, Attended], Tensor]:
    """The attention of every layer, and the logits."""
    places, logits = built
    found: dict[str, Attended] = {}

    def reader(name: str) -> AttentionEdit:
        def read(attended: Attended) -> tuple[Tensor, Tensor]:
            found[name] = attended
            return torch.zeros_like(attended.values), torch.zeros(attended.weights.shape[:3], dtype=torch.bool)

        return read

    with ExitStack() as stack, torch.no_grad():
        for layer in places.attention:
            stack.enter_context(layer.edited(reader(layer.name)))
        return found, logits(tokens)


@pytest.mark.parametrize("edit", [*EDITS, LEARNED])
@pytest.mark.parametrize("name", [*OWN_PARTS, *FAMILIES])
def test_no_sink_edited_changes_no_bit(name: str, edit: str) -> None:
    built, tokens = build(name), rows()[:, :-1]
    places, logits = built
    found, before = see(built, tokens)
    if name in OWN_PARTS:
        with torch.no_grad():
            assert torch.equal(logits(tokens), before)
    side = side_of(built, tokens, FIRST)
    with torch.no_grad():
        with side.edited(edit, places.attention):
            changed = not torch.equal(logits(tokens), before)
        # The first layer alone computes what it computed before, and all of its queries are left as they are.
        for key in side.sinks:
            side.sinks[key] = torch.zeros_like(side.sinks[key])
        if edit != LEARNED:
            with side.edited(edit, places.attention):
                assert torch.equal(logits(tokens), before)
    learned = any(bool((attended.learned_mass > 0).any()) for attended in found.values())
    shared = name not in ("sigmoid", "clipped") or "rescaling" not in edit
    assert changed == (learned if edit == LEARNED else shared)


@pytest.mark.parametrize("name", [*OWN_PARTS, *FAMILIES])
def test_weights_and_values_are_the_models_own(name: str) -> None:
    """What the edit is given makes the output that the model has: put in its place, the logits stay."""
    built, tokens = build(name), rows()[:, :-1]
    places, logits = built
    found, before = see(built, tokens)

    def whole(attended: Attended) -> tuple[Tensor, Tensor]:
        out = attended.weights @ attended.values + attended.learned_output
        return out, torch.ones(out.shape[:3], dtype=torch.bool)

    with ExitStack() as stack, torch.no_grad():
        for layer in places.attention:
            stack.enter_context(layer.edited(whole))
        torch.testing.assert_close(logits(tokens), before, rtol=1e-9, atol=1e-9)
    for attended in found.values():
        total = attended.weights.sum(-1) + attended.learned_mass
        assert not attended.row_normalized or (total - 1).abs().max() < 1e-12


def plain(edit: str, a: Attended, taken: Tensor, mean: Tensor, learned_mean: Tensor) -> Tensor:
    """The table of sinks.probes.removals, query by query."""
    out = torch.zeros_like(a.values)
    for b in range(out.shape[0]):
        for h in range(out.shape[1]):
            added, total = torch.zeros_like(out[0, 0, 0]), torch.tensor(0.0, dtype=out.dtype)
            for t in range(out.shape[2]):
                kept = a.learned_output[b, h, t].clone()
                contribution = torch.zeros_like(kept)
                for j in range(t + 1):
                    kept += (a.weights - taken)[b, h, t, j] * a.values[b, h, j]
                    contribution += taken[b, h, t, j] * a.values[b, h, j]
                w = taken[b, h, t].sum()
                added, total = added + contribution, total + w
                mean_value = added / total if total > 0 else torch.zeros_like(added)
                learned = a.learned_mass[b, h, t]
                out[b, h, t] = {
                    "value": kept,
                    "constant-contribution": kept + mean[h] * mean_value,
                    "rescaling": kept / (1 - w) + contribution,
                    "constant-rescaling": kept * (1 - mean[h]) / (1 - w) + contribution,
                    "masked": kept / (1 - w),
                    LEARNED: (kept - a.learned_output[b, h, t] + contribution) * (1 - learned_mean[h]) / (1 - learned)
                    + a.learned_output[b, h, t] * learned_mean[h] / learned,
                }[edit]
    return out


@pytest.mark.parametrize("edit", [*EDITS, LEARNED])
def test_edits_are_their_formulas(edit: str) -> None:
    torch.manual_seed(4)
    scores = torch.randn(2, 3, 6, 6, dtype=torch.float64).masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf)
    joined = torch.cat([scores, torch.randn(2, 3, 6, 1, dtype=torch.float64)], dim=-1).softmax(-1)
    weights, learned = joined[..., :-1], joined[..., -1]
    values = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    attended = Attended(weights, values, learned, learned.unsqueeze(-1) * torch.randn(4, dtype=torch.float64), True)
    keys = torch.zeros(2, 3, 6, dtype=torch.bool)
    keys[0, :, 0] = keys[0, 1, 2] = keys[1, 2, 1] = True
    taken = mass_on(weights, keys)
    assert bool((taken[0, 1, 2:, 2] == 0).any())
    assert taken[0, 1, 2, 2] == 0  # a key's own query keeps what it has there
    assert torch.equal(taken[0, 1, 3:, 2], weights[0, 1, 3:, 2])
    mean, learned_mean = torch.rand(2, 3, dtype=torch.float64)
    removal = Removal(attended, taken, mean, learned_mean)
    found = removal.learned_constant() if edit == LEARNED else EDITS[edit](removal)
    torch.testing.assert_close(found, plain(edit, attended, taken, mean, learned_mean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [0, 2])
def test_masked_is_the_model_with_that_key_masked(layer: int) -> None:
    """Against transformers' own attention, whose mask excludes position 0 from the given layer on."""
    model = llama("Llama", implementation="sdpa")
    tokens = rows()[:, :-1]
    built: Built = (hooked_places(model), lambda ids: model(ids, use_cache=False).logits)
    side = side_of(built, tokens, FIRST)
    with torch.no_grad(), side.edited("masked", side.layers[layer:]):
        found = built[1](tokens)

    length = tokens.shape[1]
    mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    mask[1:, 0] = -torch.inf
    masked = mask.expand(len(tokens), 1, length, length)

    def exclude(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": masked}

    for block in model.model.layers[layer:]:
        block.self_attn.register_forward_pre_hook(exclude, with_kwargs=True)
    with torch.no_grad():
        torch.testing.assert_close(found, model(tokens, use_cache=False).logits, rtol=1e-9, atol=1e-9)


def test_sinks_are_those_of_detection() -> None:
    torch.manual_seed(5)
    weights = (4 * torch.randn(3, 2, 8, 8)).masked_fill(torch.ones(8, 8).triu(1) > 0, -torch.inf).softmax(-1)
    attended = Attended(weights, torch.randn(3, 2, 8, 4), torch.zeros(3, 2, 8), torch.zeros(3, 2, 8, 4), True)
    found = sinks_of(attended, DETECTED)
    for key in range(8):
        alpha = weights[:, :, key:, key].mean(-1)
        assert torch.equal(found[..., key], (alpha > 0.3) & torch.tensor(key < 4))
    assert 0 < found.sum() < found[..., :4].numel()
    own = weights.diagonal(dim1=-2, dim2=-1)[..., 1:].mean(-1) > 0.3
    assert torch.equal(sinks_of(attended, OWN), own[..., None].expand(3, 2, 8))
    assert sinks_of(attended, FIRST).sum((0, 1)).tolist() == [6, *[0] * 7]


@pytest.mark.parametrize(("kind", "first"), [("recent", 5), ("middle", 2), ("random", None)])
def test_controls_take_as_much_mass_of_other_keys(kind: str, first: int | None) -> None:
    torch.manual_seed(6)
    weights = torch.randn(2, 3, 6, 6, dtype=torch.float64).masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf)
    weights = weights.softmax(-1)
    keys = torch.zeros(2, 3, 6, dtype=torch.bool)
    keys[..., 0] = True
    keys[0, 0, 0], keys[0, 0, 1] = False, True
    taken = mass_on(weights, keys)
    order = order_of_keys(kind, 6, torch.Generator().manual_seed(0))
    assert sorted(order[5].tolist()) == [0, 1, 2, 3, 4, 5]
    found = as_much(weights, taken, order)
    others = weights.masked_fill(taken > 0, 0.0)
    torch.testing.assert_close(found.sum(-1), torch.minimum(taken.sum(-1), others.sum(-1)), rtol=1e-12, atol=1e-12)
    assert bool((found <= others).all())
    assert bool((found >= 0).all())
    if first is not None:
        taken_first = torch.minimum(others[..., 5, first], taken[..., 5, :].sum(-1))
        assert torch.equal(found[..., 5, first], taken_first)
    else:
        draws = {tuple(order_of_keys(kind, 6, torch.Generator().manual_seed(i))[0].tolist()) for i in range(20)}
        assert len(draws) > 10


def test_calibration_is_the_mean_over_queries_that_see_a_sink() -> None:
    built, tokens = build("softmax"), rows(5)[:, :-1]
    found, _ = see(built, tokens)
    side = side_of(built, tokens, DETECTED)
    for name, attended in found.items():
        sinks = sinks_of(attended, DETECTED)
        for head in range(4):
            masses = [
                attended.weights[row, head, t, :t][sinks[row, head, :t]].sum()
                for row in range(5)
                for t in range(tokens.shape[1])
                if sinks[row, head, :t].any()
            ]
            expected = torch.stack(masses).mean() if masses else torch.tensor(0.0, dtype=torch.float64)
            torch.testing.assert_close(side.calibrations[name].mean_mass()[head], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["softmax", "Llama"])
def test_a_later_start_counts_no_row_twice(name: str) -> None:
    places, logits = build(name)
    tokens, found = rows(5), []
    for starts in ((), (1, 2)):
        calibrations = calibrate_attention(places.attention, FIRST, lambda: logits(tokens[:, :-1]))
        side, detection = AttentionSide(places.attention, DETECTED, calibrations, 0), Detection()

        def watch(batch: int, side: AttentionSide = side, detection: Detection = detection) -> None:
            side.batch = batch
            detection.start_batch(tokens[2 * batch : 2 * batch + 2, :-1])

        with side.finding(detection):
            scorer = Scorer(logits, places.blocks, tokens, 2, starts, watch)
        with side.edited("masked", places.attention[2:]):
            found.append((detection.results(str), side.sinks, scorer.losses(2)))
    (expected, sinks, losses), (again, sinks_again, losses_again) = found
    assert again == expected
    assert expected["sinks"]["count"] > 0
    assert all(torch.equal(sinks[key], sinks_again[key]) for key in sinks)
    assert torch.equal(losses, losses_again)


@pytest.mark.parametrize("name", ["headwise", "elementwise", "identity-gate", "tensorwise", "silu", "Qwen3-Next"])
def test_a_gate_at_its_mean_and_at_one(name: str) -> None:
    built, tokens = build(name), rows()[:, :-1]
    places, logits = built
    side = side_of(built, tokens, FIRST)
    layer = next(layer for layer in places.attention if layer.gated)
    seen: list[Tensor] = []

    def keep(values: Tensor) -> Tensor:
        seen.append(values)
        return values

    with torch.no_grad():
        with layer.gate_edited(keep):
            before = logits(tokens)
        means = seen[0].mean((0, 2), keepdim=True).expand_as(seen[0])
        torch.testing.assert_close(
            side.calibrations[layer.name].gate / side.calibrations[layer.name].gate_tokens,  # type: ignore[operator]
            means[0, :, 0],
            rtol=1e-12,
            atol=1e-12,
        )
        for edit, expected in ((GATE_MEAN, means), (GATE_ONE, torch.ones_like(means))):
            with layer.gate_edited(lambda values, expected=expected: expected):  # type: ignore[misc]
                plain_logits = logits(tokens)
            with side.edited(edit, [layer]):
                torch.testing.assert_close(logits(tokens), plain_logits, rtol=1e-9, atol=1e-9)
            assert name == "identity-gate" or (plain_logits - before).abs().max() > 1e-3
        # The gate that is read is the one that multiplies: at one, what the output projection reads is the output.
        if name == "headwise":
            attended, _ = see(built, tokens)
            read: list[Tensor] = []
            mixer = places.blocks[layer.layer].attention
            handle = mixer.out.register_forward_pre_hook(lambda module, args: read.append(args[0]))  # type: ignore[union-attr, operator]
            with side.edited(GATE_ONE, [layer]):
                logits(tokens)
            handle.remove()
            whole = (attended[layer.name].weights @ attended[layer.name].values).transpose(1, 2).flatten(2)
            torch.testing.assert_close(read[0], whole, rtol=1e-12, atol=1e-12)


def test_how_a_sink_writes() -> None:
    """By its value after the output projection, which need not be small where the value is."""
    weights = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    weights[..., 0] = 0.9
    weights[..., range(8), range(8)] += 0.1
    torch.manual_seed(7)
    values = torch.randn(1, 3, 8, 2, dtype=torch.float64)
    values[0, 0, 0] = 0
    values[0, 1, 0] = torch.tensor([30.0, 0.0], dtype=torch.float64)
    values[0, 2, 0] = torch.tensor([0.4, 0.0], dtype=torch.float64) * values[0, 2, 1:].norm(dim=-1).median()
    attended = Attended(weights, values, torch.zeros(1, 3, 8), torch.zeros_like(values), True)
    calibration = Calibration()
    calibration.add(attended, DETECTED, torch.eye(6, dtype=torch.float64), 0, ())
    found = [calibration.how(head) for head in range(3)]
    assert [each["how"] for each in found] == ["no-op", "broadcast", "between"]
    written = (weights @ values)[0, 1]
    norms = torch.linalg.svdvals(written).square()
    assert found[1]["stable_rank"] == pytest.approx((norms.sum() / norms[0]).item(), rel=1e-9)
    torch.manual_seed(8)
    output, projection = torch.randn(9, 4, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    norms = torch.linalg.svdvals(output @ projection.T).square()
    assert stable_rank(output, projection) == pytest.approx((norms.sum() / norms[0]).item(), rel=1e-12)
    assert found[2]["ratio"] == pytest.approx(0.4, rel=1e-9)
