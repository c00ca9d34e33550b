"""A normalizer given as a function: softmax equals the built-in one, rows may be empty, fused backends reject it."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import STATISTICS, attention, attention_op, flash_attention4, flash_cpu, key_mass

CASES = [{}, {"window": 5, "gate": "head"}, {"softcap": 2.0, "kv_heads": 1, "scale": 0.5, "gate": "element"}]


def softmax(scores):
    assert scores.dtype in (torch.float32, torch.float64)
    return scores.softmax(-1)


def softpick(scores, eps=1e-6):
    """relu(exp(s) - 1) / sum |exp(s) - 1|, both scaled by exp(-max); Zuhri et al., arXiv 2504.20966."""
    top = scores.amax(-1, keepdim=True).clamp_min(0.0)
    above = (scores - top).exp() - (-top).exp()
    total = above.abs().masked_fill(scores == -torch.inf, 0.0).sum(-1, keepdim=True)
    return above.relu() / (total + eps)


def everything(call, grads_of, **more):
    out, grads = grads_of(call, attention, backend="auto", **more)
    _, stats = call.run(attention, stats=STATISTICS, **more)
    return {"out": out, **grads, **stats, "mass": key_mass(call.q, call.k, stats["lse"], **call.options | more)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_softmax_as_a_function_is_softmax(case, dtype, make_call, out_and_grads):
    call = make_call("softmax", batch=2, heads=4, dtype=dtype, **{"kv_heads": 2, **case}).cast(dtype)
    call.options.pop("normalizer")
    own, expected = (everything(call, out_and_grads, normalizer=given) for given in (softmax, "softmax"))
    # The mass of a row of weights that sum to 1; what they were divided by is not known.
    assert own.pop("lse").abs().max() < 1e-6
    expected.pop("lse")
    tolerance = {"rtol": 0.02, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for name, value in own.items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_softpick(case, dtype, make_call, out_and_grads):
    call = make_call("softmax", dtype=dtype, **case).cast(dtype)
    with torch.no_grad():  # Every score of the first queries is negative: nothing is picked.
        call.k[..., 0] = 3.0
        call.q[:, :, :4] = 0.0
        call.q[:, :, :4, 0] = -3.0
    call.options["normalizer"] = softpick
    all_of_it = everything(call, out_and_grads)
    assert all(value.isfinite().all() for name, value in all_of_it.items() if name != "lse")
    assert (all_of_it["lse"][..., :4] == -torch.inf).all()
    assert all(all_of_it[name][..., :4].abs().max() == 0 for name in ("first_key_mass", "entropy", "sink_mass"))
    assert all_of_it["out"][:, :, :4].abs().max() == 0

    one_hot = torch.eye(33, dtype=dtype).expand(*call.k.shape[:2], 33, 33)
    q, k = (torch.nn.functional.pad(x.detach(), (0, 17)) for x in (call.q, call.k))
    scale = call.options.get("scale") or 0.25
    weights = attention(q, k, one_hot, **call.options | {"scale": scale}).double()
    seen = weights.sum(-1) > 0
    scaled = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    close = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(all_of_it["mass"].double(), scaled.sum(2), **close)
    torch.testing.assert_close(all_of_it["first_key_mass"].double(), scaled[..., 0], **close)
    torch.testing.assert_close(all_of_it["entropy"].double(), -torch.special.xlogy(scaled, scaled).sum(-1), **close)
    torch.testing.assert_close(all_of_it["lse"][seen].double(), weights.sum(-1)[seen].log(), **close)


@pytest.mark.parametrize("normalizer", [softmax, softpick, torch.tanh])
def test_a_later_token_or_a_key_outside_the_window_changes_nothing(normalizer, make_call):
    call = make_call(gate="element", window=5)
    call.options["normalizer"] = normalizer
    out = call.run(attention)
    for x in (call.q, call.k, call.v, call.gate):
        x[:, :, 20:] += 3.0
    for x in (call.k, call.v):
        x[:, :, 10] += 3.0
    changed = call.run(attention)
    assert torch.equal(out[:, :, :10], changed[:, :, :10])
    assert torch.equal(out[:, :, 15:20], changed[:, :, 15:20])
    assert not torch.equal(out, changed)


def test_gradcheck_and_one_graph(make_call):
    call = make_call(tokens=5, head_dim=3, kv_heads=1, gate="element", window=4).cast(torch.float64)

    def run(q, k, v, gate):
        return attention(q, k, v, gate=gate, normalizer=softpick, window=4)

    inputs = [call.q, call.k, call.v, call.gate]
    assert torch.autograd.gradcheck(run, inputs)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs), run(*inputs))


def test_fused_backends_reject_it_and_name_an_alternative(make_call, triton_device):
    call = make_call().to(triton_device)
    call.options["normalizer"] = softpick
    for module in (attention_op, flash_cpu, flash_attention4):
        if module is not flash_cpu or triton_device == "cpu":
            assert "by a function: use backend='" in module.unsupported(call.q, call.resolved())
    for backend in ("triton", "fa4"):
        with pytest.raises(ValueError, match=r"by a function: use backend='(reference|auto)'"):
            call.run(attention, backend=backend)
