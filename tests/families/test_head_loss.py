"""A training step whose loss avoids the whole logits, as on a GPU, against one that has them."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sinks.families import CausalLM
from sinks.models import cross_entropy
from sinks.models.decoder import Head
from sinks.observe import Reader
from sinks.observe.sites import sites_of
from tests.families.variants import SMALL, build


def step(tied: bool, autocast: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and statistics."""
    torch.manual_seed(0)
    model = build("gated", architecture=dataclasses.replace(SMALL, tied_embeddings=tied))
    rows = torch.randint(11, (3, 13))
    reader = Reader(sites_of(model))
    reader.start()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.loss(rows)
    reader.stop()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, reader.totals()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_gradients_and_statistics_are_the_same(
    tied: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, gradients, statistics = step(tied, autocast)
    applied: list[int] = []
    original = cross_entropy._Projected.apply

    def counted(*inputs: Tensor) -> Tensor:
        applied.append(len(inputs[0]))
        return original(*inputs)

    monkeypatch.setattr(cross_entropy._Projected, "apply", counted)
    monkeypatch.setattr(cross_entropy, "without_logits", lambda device, dtype: True)
    monkeypatch.setattr(cross_entropy, "GPU_CHUNK", 10 * 11)
    own_loss, own_gradients, own_statistics = step(tied, autocast)
    assert applied == [3 * 12]
    torch.testing.assert_close(own_loss, loss)
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        difference = (own_gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)
        assert difference < (0.02 if autocast else 1e-5), name
    torch.testing.assert_close(own_statistics, statistics, rtol=0, atol=0, equal_nan=True)


class Capped(Head):
    """Logits of at most 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def replace(model: CausalLM) -> None:
    decoder = model.decoder
    assert decoder is not None
    own = Capped(decoder.head.in_features, decoder.head.out_features, init_std=0.1)
    own.load_state_dict(decoder.head.state_dict())
    decoder.head = own


def hook(model: CausalLM) -> None:
    assert model.decoder is not None
    model.decoder.head.register_forward_hook(lambda head, inputs, logits: logits.tanh())


def hook_before(model: CausalLM) -> None:
    assert model.decoder is not None
    model.decoder.head.register_forward_pre_hook(lambda head, inputs: (2 * inputs[0],))


def parametrize(model: CausalLM) -> None:
    assert model.decoder is not None
    nn.utils.parametrizations.weight_norm(model.decoder.head)


@pytest.mark.parametrize("change", [replace, hook, hook_before, parametrize])
def test_a_head_of_ones_own_has_its_say(change: Callable[[CausalLM], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "without_logits", lambda device, dtype: True)
    torch.manual_seed(0)
    model = build("gated")
    change(model)
    rows = torch.randint(11, (3, 13))
    expected = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    torch.testing.assert_close(model.loss(rows), expected)
