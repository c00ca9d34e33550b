"""What a CUDA graph requires of the launch code, shown without a GPU.

The launch code runs on the meta device, whose tensors have no values: whatever reads one raises. A dispatch mode
rejects tensors on another device, to which values would have to be copied. The rest is for stage a of the GPU report,
which captures a graph.
"""

from __future__ import annotations

import pytest
import torch
from sink_kernels import STATISTICS, attention_op, gated_norm_op
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.kernels.checks import make_norm_inputs

OPS = (
    attention_op.attention_forward,
    attention_op.attention_backward,
    attention_op.key_mass,
    gated_norm_op.gated_norm_forward,
    gated_norm_op.gated_norm_backward,
)
SYNCHRONIZES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_pin_memory", "equal", "is_nonzero")


class OneDevice(TorchDispatchMode):
    """Rejects every operation that synchronizes or whose tensors are not all on the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in func.name() for name in SYNCHRONIZES), func
        result = func(*args, **kwargs or {})
        assert all(
            x.device.type == "meta" for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)
        ), func
        return result


class Launches:
    """In place of a kernel: keeps the grid and arguments of its launches."""

    def __init__(self):
        self.seen = []

    def __getitem__(self, grid):
        def launch(*args, **constants):
            values = [x for x in (*grid, *args, *constants.values()) if not isinstance(x, torch.Tensor)]
            assert all(type(x) in (int, float, bool, str) for x in values), values
            self.seen.append(grid)

        return launch


@pytest.fixture
def launches(triton_device, monkeypatch):
    """The launches of every kernel, none of which runs."""
    from sink_kernels import triton_attention, triton_gated_norm

    kernels = Launches()
    for module in (triton_attention, triton_gated_norm):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, kernels)
    return kernels


@pytest.mark.parametrize("normalizer", ["softmax", "off_by_one", "learnable_sink", "sigmoid"])
def test_attention_launches_without_reading_a_value(normalizer, launches, make_call):
    from sink_kernels import triton_attention

    call = make_call(normalizer, kv_heads=1, tokens=40, gate="head", window=20, softcap=5.0).to("meta")
    options = call.resolved()
    with OneDevice():
        out, lse, *_ = triton_attention.forward(*call[:5], options, True, True)
        triton_attention.backward(torch.empty_like(out), *call[:5], out, lse, options)
        triton_attention.key_mass(call.q, call.k, lse, options)
        attention_op.attend(*call[:5], options, STATISTICS, call.q.new_ones(1, 2, 40, 3))
    assert len(launches.seen) == 5


@pytest.mark.parametrize("pre_affine", [False, True])
def test_gated_norm_launches_without_reading_a_value(pre_affine, launches):
    from sink_kernels import triton_gated_norm

    x, weight, *others = (x.detach().to("meta") for x in make_norm_inputs((40, 32), 4, pre_affine))
    inputs = (x, weight, *others, *[None] * (not pre_affine))
    with OneDevice():
        y, rstd, h, *_ = triton_gated_norm.forward(*inputs, 1e-6, 0.0, True)
        triton_gated_norm.backward(torch.empty_like(y), *inputs, rstd, h, 0.0)
        gated_norm_op.gated_norm(*inputs, 1e-6, 0.0, ("absmax", "fourth_moment"))
    assert len(launches.seen) == 3


@pytest.mark.parametrize("op", OPS, ids=lambda op: op._name)
def test_no_op_is_kept_out_of_cuda_graphs(op):
    assert torch.Tag.cudagraph_unsafe not in op._opoverload.tags
