"""The forms of the gated delta rule agree, and with transformers' functions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.models import delta_rule as rules
from sinks.models.delta_rule import by_kernel, chunked_delta_rule, recurrent_delta_rule

BATCH, HEADS, KEY, VALUE = 2, 3, 4, 5


def inputs(tokens: int, dtype: torch.dtype = torch.float64, value: int = VALUE) -> list[Tensor]:
    """q and k of unit length, v, log decays of which some are large, rates."""
    generator = torch.Generator().manual_seed(tokens)

    def draw(*size: int) -> Tensor:
        return torch.randn(BATCH, HEADS, tokens, *size, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(KEY), dim=-1) for _ in range(2))
    made = [q, k, draw(value), -(draw().exp() ** 2), draw().sigmoid()]
    return [x.to(dtype).requires_grad_() for x in made]


def by_definition(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """S_t = S_(t-1) exp(g) (I - b k k^T) + b v k^T of one head, value by key as in the paper (equation 10)."""
    state, outputs = torch.zeros(v.shape[-1], k.shape[-1], dtype=v.dtype), []
    for t in range(len(q)):
        erase = torch.eye(k.shape[-1], dtype=v.dtype) - beta[t] * torch.outer(k[t], k[t])
        state = log_decay[t].exp() * state @ erase + beta[t] * torch.outer(v[t], k[t])
        outputs.append(state @ q[t] / k.shape[-1] ** 0.5)
    return torch.stack(outputs)


def test_the_recurrent_form_is_the_papers_equation() -> None:
    given = inputs(7)
    expected = torch.stack([
        torch.stack([by_definition(*(x[b, h] for x in given)) for h in range(HEADS)]) for b in range(BATCH)
    ])  # fmt: skip
    torch.testing.assert_close(recurrent_delta_rule(*given), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 4), (3, 4), (8, 4), (11, 4), (13, 64), (9, 1)])
def test_chunks_give_outputs_and_all_gradients_of_the_recurrent_form(tokens: int, chunk: int) -> None:
    given = inputs(tokens)
    expected, found = recurrent_delta_rule(*given), chunked_delta_rule(*given, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weights).sum(), given) for out in (found, expected)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


def test_a_decay_to_nothing_stays_finite() -> None:
    q, k, v, log_decay, beta = inputs(11, torch.float32)
    log_decay = (1e4 * log_decay).detach().requires_grad_()
    out = chunked_delta_rule(q, k, v, log_decay, beta, chunk=4)
    torch.testing.assert_close(out, recurrent_delta_rule(q, k, v, log_decay, beta))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v, log_decay, beta)))


@pytest.mark.parametrize("form", [recurrent_delta_rule, chunked_delta_rule])
@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_inputs_are_computed_in_float32(form: Any, mixed: bool) -> None:
    given = [x.bfloat16() for x in inputs(11)]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = form(*given)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, form(*(x.float() for x in given)).bfloat16())


@pytest.mark.parametrize("name", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_transformers_functions_through_the_kernels_signature(name: str) -> None:
    """They have the signature and the layout of flash-linear-attention's, which itself needs a GPU."""
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    given = inputs(70, torch.float32)
    torch.testing.assert_close(
        by_kernel(getattr(modeling, name), *given), chunked_delta_rule(*given), rtol=1e-4, atol=1e-5
    )


def test_a_cpu_does_not_ask_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "fla_kernel", lambda: pytest.fail("asked"))
    given = inputs(5, torch.float32)
    assert torch.equal(rules.delta_rule(*given), chunked_delta_rule(*given))
