"""Counts against the parameters themselves and against torch's own counter of operations."""

import dataclasses
import itertools
from importlib import import_module
from typing import Any

import pytest
import torch
from sink_kernels import reference
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sinks.families import CausalLM
from sinks.models import gated_delta_net
from sinks.models.counting import SCORES, parameters_by_kind
from sinks.models.delta_rule import recurrent_delta_rule
from tests.families.variants import ARCHITECTURES, FEED_FORWARDS, SMALL, VARIANTS, build

BATCH, TOKENS = 3, 12
# Of rows [N, K] with one of several matrices [K, M] each, and of the gradient of these.
GROUPED = {
    torch.ops.sinks.grouped_product: lambda x, matrices, counts, **_: 2 * x[0] * matrices[1] * matrices[2],
    torch.ops.sinks.grouped_outer: lambda x, y, counts, **_: 2 * x[0] * x[1] * y[1],
}


@pytest.fixture(autouse=True)
def _attention_by_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference: fused attention recomputes its scores in the backward pass, and torch counts that."""
    monkeypatch.setattr(import_module("sink_kernels.attention"), "_backend", lambda *_: reference)
    # By its definition: chunks have other products, which are no operations of the model.
    monkeypatch.setattr(gated_delta_net, "delta_rule", recurrent_delta_rule)


def counted(model: CausalLM, backward: bool) -> int:
    """What torch counts for a batch without memory: full attention matrices, the causal half not discounted."""
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
        decoder = model.make_decoder()
        logits = decoder(torch.zeros(BATCH, TOKENS, dtype=torch.int64))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def expected(model: CausalLM, first_token: int) -> float:
    """Ours for the same batch, with full attention matrices; a learned key adds a row."""
    flops = model.meta_decoder().flops_per_token(TOKENS).forward_by_kind
    scores = flops.pop(SCORES, 0.0) * 2 * (TOKENS + first_token) / TOKENS
    return BATCH * TOKENS * (sum(flops.values()) + scores)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", VARIANTS)
def test_operations_of_every_variant_are_those_torch_counts(name: str, backward: bool) -> None:
    model = build(name)
    first_token = int(name in ("key-value-bias", "key-bias"))
    assert counted(model, backward) == (3 if backward else 1) * expected(model, first_token)


@pytest.mark.parametrize(
    ("architecture", "feed_forward"), list(zip(ARCHITECTURES, itertools.cycle(FEED_FORWARDS), strict=False))
)
def test_operations_of_every_architecture_are_those_torch_counts(architecture: str, feed_forward: str) -> None:
    options: dict[str, Any] = ARCHITECTURES[architecture]
    model = build(
        "gated",
        architecture=dataclasses.replace(SMALL, **options),
        feed_forward=FEED_FORWARDS[feed_forward],
    )
    assert counted(model, backward=True) == 3 * expected(model, first_token=0)
    assert model.meta_decoder().flops_per_token(TOKENS).per_token * BATCH * TOKENS < counted(model, backward=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_of_one_kind(name: str, tied: bool) -> None:
    model = build(name, architecture=dataclasses.replace(SMALL, tied_embeddings=tied, position="learned"))
    counts = parameters_by_kind(model.meta_decoder())
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["embedding"] == 11 * 16 + 12 * 16
    assert counts.get("head", 0) == (0 if tied else 11 * 16)
    assert counts["attention"] >= 2 * (16 * 24 + 16 * 12 * 2 + 24 * 16)
    experts = 5 * 3 * 16 * 6 + 3 * 16 * 6  # the shared one too
    assert counts.get("routers", 0) == (2 * 16 * (5 + 1) if name == "experts" else 0)  # and the shared one's gate
    assert counts["feed-forward"] == 2 * (experts if name == "experts" else 2 * 16 * 24)
    assert counts.get("norm gates", 0) == (0 if "norm-gate" not in name and name not in GATED else GATES[name])
    assert counts.get("attention gates", 0) == ATTENTION_GATES.get(name, 0)
    assert counts.get("key gates", 0) == (2 * 16 * 12 if name == "gated-keys" else 0)
    assert counts.get("attention exclusion", 0) == (2 * 4 if name == "learned-exclusion" else 0)


GATED = ("gated-norm", "gate-dyt", "gated")
GATES = dict.fromkeys(
    [*GATED, "tanh-norm-gate", "silu-norm-gate", "identity-norm-gate", "amplifying-norm-gate", "norm-gate-alone"],
    2 * 2 * (16 * 3 + 3 * 16),
) | {
    "tensorwise-norm-gate": 2 * 2 * (16 * 3 + 3),
    "feed-forward-norm-gate": 2 * (16 * 3 + 3 * 16),
}
ATTENTION_GATES = {
    "headwise-gate": 2 * 16 * 4,
    "elementwise-gate": 2 * 16 * 24,
    "unconditional-gate": 2 * 24,
    "gated": 2 * 16 * 24,
    "exclusive+gate": 2 * 16 * 24,
    "tensorwise-gate": 2 * 16,
    "truncated-gate": 2 * 3 * 4,
    "silu-gate": 2 * 16 * 24,
    "hybrid-gated": 16 * 24,
}
