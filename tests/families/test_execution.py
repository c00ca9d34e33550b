"""Blocks of every variant, compiled or checkpointed: the same loss and gradients as without."""

import random

import pytest
import torch
from torch import Tensor, nn

from sinks.families import CausalLM
from sinks.models.execution import Execution
from tests.families.variants import VARIANTS, build

SAMPLE = sorted(random.Random(1).sample(sorted(VARIANTS), 4))

# Graphs as inductor's, run without generated code, which would take minutes. Plain aot_eager keeps softplus_backward
# whole and assumes other strides than it gives (torch 2.14), which Gated DeltaNet meets.
EAGER = "aot_eager_decomp_partition"


def losses_and_gradients(name: str, dtype: torch.dtype = torch.float32, **execution: bool) -> dict[str, Tensor]:
    """Of what training minimizes, the second time that a model computes it."""
    torch.manual_seed(0)
    model: CausalLM = build(name, execution=Execution(**execution)).to(dtype)
    rows = torch.randint(0, 11, (3, 13), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        model.zero_grad()
        loss = model.objective.loss(model, rows)
        loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpointed_block_gives_the_same_gradients_bit_for_bit(name: str) -> None:
    plain, found = losses_and_gradients(name), losses_and_gradients(name, activation_checkpointing=True)
    assert plain.keys() == found.keys()
    assert [n for n, value in plain.items() if not torch.equal(value, found[n])] == []


def assert_compiled_is_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype = torch.float32, **execution: bool
) -> None:
    compiled = 0
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11

    def compile_block(self: nn.Module) -> None:
        nonlocal compiled
        compiled += 1
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend, fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile_block)
    torch.compiler.reset()
    plain, found = losses_and_gradients(name, dtype), losses_and_gradients(name, dtype, compile=True, **execution)
    assert compiled == 2
    assert plain.keys() == found.keys()
    for key, value in plain.items():
        difference, largest = (found[key] - value).abs().max(), value.abs().max()
        assert difference <= tolerance * (largest + 0.01), f"{key}: {difference} of {largest}"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SAMPLE else [pytest.mark.slow]) for n in VARIANTS])
def test_a_compiled_block_gives_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_compiled_is_the_same(name, monkeypatch, EAGER)


# One of each kind of axis; experts, whose blocks are not one graph if also checkpointed, in test_load_balance.py.
INDUCTOR = (
    "softpick", "exclusive+gate", "truncated-gate", "gated-keys", "amplifying-norm-gate", "seednorm", "sandwich",
    "clip-other-tokens", "hybrid",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
def test_a_compiled_and_checkpointed_block_gives_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In float64: generated code rounds in another order, which gradients of a hybrid's convolutions amplify tenfold.
    assert_compiled_is_the_same(name, monkeypatch, "inductor", torch.float64, activation_checkpointing=True)
