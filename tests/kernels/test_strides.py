"""Strided, transposed and expanded arguments and gradients give the same results as contiguous ones."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import STATISTICS, attention, attention_op, gated_norm, gated_norm_op, key_mass, tiles

from benchmarks.kernels.checks import LAYOUTS, make_norm_inputs

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning"),
]


def layouts(x):
    """Tensors of x's shape: its values in other layouts, and two with repeated memory."""
    return *(layout(x) for layout in LAYOUTS.values()), x[..., :1].expand_as(x), x[:1].expand_as(x)


def assert_strides_do_not_matter(function, tensors, close):
    """`function` maps named tensors to a list. In five calls every argument has every layout."""
    for turn in range(5):
        given = {name: layouts(x)[(turn + place) % 5] for place, (name, x) in enumerate(tensors.items())}
        expected = function(**{name: x.contiguous() for name, x in given.items()})
        for own, right in zip(function(**given), expected, strict=True):
            torch.testing.assert_close(own, right, **close)


def out_and_all_grads(function, grad, tensors):
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out, stats = function(**leaves)
    return [out, *stats.values(), *torch.autograd.grad(out, list(leaves.values()), grad)]


@pytest.fixture
def tensors(make_call, triton_device, monkeypatch):
    from sink_kernels import triton_attention

    monkeypatch.setattr(triton_attention, "tile_for", lambda *_: tiles.Tile(16, 16, 4, 2))
    call = make_call("learnable_sink", batch=2, kv_heads=1, tokens=9, gate="head").to(triton_device)
    return call.tensors | {"grad": torch.randn_like(call.q)}


@pytest.mark.parametrize("gate", ["head", "element"])
@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_attention(backend, gate, tensors, triton_device, close):
    if backend == "flash" and triton_device == "cuda":
        pytest.skip("the flash path runs on the CPU")
    if gate == "element":
        tensors["gate"] = torch.randn_like(tensors["q"])

    def run(grad, **given):
        def attend(**leaves):
            return attention(**leaves, normalizer="learnable_sink", stats=STATISTICS, backend=backend)

        return out_and_all_grads(attend, grad, given)

    assert_strides_do_not_matter(run, tensors, close)


def test_what_the_attention_backward_saved_and_key_mass(tensors, make_call, close):
    inputs = [tensors[name] for name in ("q", "k", "v", "sink", "gate")]
    flat = attention_op.flat(make_call("learnable_sink").resolved())
    out, lse, *_ = attention_op.attention_forward(*inputs, *flat, False, False)

    def backward(out, lse):
        return attention_op.attention_backward(tensors["grad"], *inputs, out, lse, *flat)

    assert_strides_do_not_matter(backward, {"out": out, "lse": lse}, close)
    scores = {"q": tensors["q"], "k": tensors["k"], "lse": lse}
    assert_strides_do_not_matter(lambda q, k, lse: [attention_op.key_mass(q, k, lse, *flat)], scores, close)
    assert_strides_do_not_matter(lambda **given: [key_mass(**given)], scores, close)


def test_gated_norm(triton_device, close):
    names = ("x", "weight", "w_down", "w_up", "pre_affine")
    given = [x.detach() for x in make_norm_inputs((5, 8), 3, True, device=triton_device)]
    tensors = dict(zip(names, given, strict=True)) | {"grad": torch.randn_like(given[0])}

    def run(grad, **given):
        def norm(**leaves):
            return gated_norm(**leaves, stats=("absmax", "fourth_moment"), backend="triton")

        return out_and_all_grads(norm, grad, given)

    assert_strides_do_not_matter(run, tensors, close)
    _, rstd, h, *_ = gated_norm_op.gated_norm_forward(*given, 1e-6, 0.0, False)

    def backward(rstd, h):
        return gated_norm_op.gated_norm_backward(tensors["grad"], *given, rstd, h, 0.0)

    assert_strides_do_not_matter(backward, {"rstd": rstd, "h": h}, close)
