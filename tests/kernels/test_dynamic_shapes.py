"""One graph serves every batch size and number of tokens: neither is compiled into it."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from sink_kernels import attention, gated_norm, tiles

from benchmarks.kernels.checks import make_norm_inputs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")

# (B, T). Not the number of heads or their width: torch takes equal sizes for one.
SIZES = ((3, 18), (5, 17))


def assert_one_graph(function, inputs_of, dimensions, close):
    """With `dimensions` marked dynamic one graph runs every size and gives a plain call's results and strides."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for size in SIZES:
        inputs = [x.detach().requires_grad_() for x in inputs_of(*size)]
        for x, dynamic in zip(inputs, dimensions, strict=True):
            for dimension in dynamic:
                torch._dynamo.mark_dynamic(x, dimension)
        results = []
        for run in (compiled, function):
            out, *others = run(*inputs)
            results.append([out, *others, *torch.autograd.grad(out.square().sum(), inputs)])
        for own, expected in zip(*results, strict=True):
            assert own.stride() == expected.stride()
            torch.testing.assert_close(own, expected, **close)
    assert counter.frame_count == 1
    torch._dynamo.reset()


CASES = {
    "triton, sink": ("triton", "learnable_sink", {}, ("lse", "key_mass")),
    "triton, window": ("triton", "sigmoid", {"window": 16}, ()),
    "flash, sink": ("flash", "learnable_sink", {}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_attention(case, make_call, triton_device, close, monkeypatch):
    from sink_kernels import triton_attention

    backend, normalizer, options, stats = CASES[case]
    if backend == "flash" and triton_device == "cuda":
        pytest.skip("the flash path runs on the CPU")
    monkeypatch.setattr(triton_attention, "tile_for", lambda *_: tiles.Tile(16, 16, 4, 2))
    if normalizer == "sigmoid":
        options = options | {"bias": -3.0}

    def attend(q, k, v, gate, sink=None):
        results = attention(
            q, k, v, gate=gate, sink=sink, normalizer=normalizer, stats=stats, backend=backend, **options
        )
        return (results[0], *results[1].values()) if stats else (results,)

    def inputs_of(batch, tokens):
        call = make_call(normalizer, batch=batch, heads=2, kv_heads=1, tokens=tokens, head_dim=8, gate="head")
        call = call.to(triton_device)
        return [call.q, call.k, call.v, call.gate, *([] if call.sink is None else [call.sink])]

    dimensions = [(0, 2)] * 4 + [()] * (normalizer == "learnable_sink")
    assert_one_graph(attend, inputs_of, dimensions, close)


def test_gated_norm(triton_device, close):
    def norm(x, weight, w_down, w_up, pre_affine):
        y, stats = gated_norm(x, weight, w_down, w_up, pre_affine=pre_affine, stats=("absmax",), backend="triton")
        return y, stats["absmax"]

    def inputs_of(batch, tokens):
        return make_norm_inputs((batch, tokens, 32), 4, True, device=triton_device)

    assert_one_graph(norm, inputs_of, [(0, 1), *[()] * 4], close | {"atol": 1e-3})
