"""Clips of the residual stream at some tokens: which values they change, and what they report."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.families import Clipped
from sinks.interop.decoder_export import export
from sinks.models.clips import Clamp, FirstTokenClamp, OtherTokensClamp
from sinks.observe import Reader, sites_of
from tests.families.variants import SMALL, build

LIMIT = 0.5
CLIPS: dict[type[Clamp], Any] = {Clamp: slice(None), FirstTokenClamp: slice(0, 1), OtherTokensClamp: slice(1, None)}


def expected(kind: type[Clamp], x: Tensor) -> Tensor:
    y = x.clone()
    y[:, CLIPS[kind]] = torch.minimum(torch.maximum(y[:, CLIPS[kind]], -torch.tensor(LIMIT)), torch.tensor(LIMIT))
    return y


@pytest.mark.parametrize("kind", CLIPS)
def test_values_and_gradients_of_the_chosen_tokens_are_clamped(kind: type[Clamp]) -> None:
    x = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    toward = torch.randn(2, 5, 7, dtype=torch.float64)
    clip = kind("clip", LIMIT)
    reported: list[Tensor] = []
    clip.report.listener = lambda tensors: reported.append(tensors["clipped"])
    found = clip(x)
    assert torch.equal(found, expected(kind, x.detach()))
    assert torch.equal(reported[0], found != x)
    (gradient,) = torch.autograd.grad(found, x, toward)
    assert torch.equal(gradient, torch.where(reported[0], 0.0, toward))


@pytest.mark.parametrize("kind", CLIPS)
def test_what_is_read_in_half_precision_stays_so(kind: type[Clamp]) -> None:
    assert kind("clip", LIMIT)(torch.randn(1, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "first", "others"), [("clip-first-token", 0.7, 1.4), ("clip-other-tokens", 1.4, 0.7)])
def test_massive_activations_and_residual_sinks_are_clipped_apart(name: str, first: float, others: float) -> None:
    model = build(name)
    assert model.decoder is not None
    with torch.no_grad():
        model.decoder.embedding.weight.mul_(100)
    reader = Reader(sites_of(model))
    with reader.reading(), torch.no_grad():
        model(torch.randint(0, 11, (3, 12)))
    scalars, statistics = reader.summarize()
    # The first norm reads the bare embedding, before any clip.
    largest = torch.from_numpy(statistics.arrays["residual/max_abs"])[0, 1:].amax(0)
    clipped, other = (largest[0], largest[1]) if first < others else (largest[1], largest[0])
    assert clipped == pytest.approx(0.7)
    assert other > 1.4
    assert 0 < scalars["residual/clipped_share"] <= 1


@pytest.mark.parametrize("residual", ["stream", "first_token", "other_tokens"])
def test_a_clip_without_a_threshold_is_rejected(residual: Any) -> None:
    with pytest.raises(UserError, match="residual clipping has no threshold"):
        Clipped(11, 12, residual=residual)


@pytest.mark.parametrize("name", ["clip-first-token", "clip-other-tokens"])
def test_transformers_has_no_clip(name: str, tmp_path: Any) -> None:
    with pytest.raises(UserError, match="there is no transformers model with residual_clip"):
        export(build(name), tmp_path / "out")


def test_a_clip_of_the_stream_is_that_of_both_parts() -> None:
    x = torch.randn(2, 5, SMALL.d_model)
    one, two = (partial(kind, threshold=LIMIT)("clip") for kind in (FirstTokenClamp, OtherTokensClamp))
    assert torch.equal(two(one(x)), Clamp("clip", LIMIT)(x))
