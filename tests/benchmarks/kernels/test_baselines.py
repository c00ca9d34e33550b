"""Baselines run at full speed and do not modify reused tensors."""

from __future__ import annotations

import sys
import types

import torch
import torch.nn.functional as F
from sink_kernels import attention

from benchmarks.kernels import baselines


def test_liger_does_not_overwrite_the_gradient_that_is_used_again(monkeypatch):
    given = {}

    def liger_rms_norm(x, weight, eps, offset=0.0, casting_mode="llama", in_place=True):
        given["in_place"] = in_place
        return F.rms_norm(x, weight.shape, weight, eps)

    module = types.SimpleNamespace(liger_rms_norm=liger_rms_norm)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", module)
    found, missing = baselines.norm_baselines(torch.device("cuda"))
    assert missing == {}
    x, weight = torch.randn(2, 8), torch.ones(8)
    torch.testing.assert_close(found["Liger RMSNorm"](x, weight), found["torch RMSNorm"](x, weight))
    assert given == {"in_place": False}


def test_flex_attention_is_compiled_for_each_shape_and_takes_a_sink(monkeypatch):
    given = {}

    def compile_nothing(function, **options):
        given.update(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    run = baselines._flex(torch.device("cpu"))
    assert given == {"dynamic": False}
    q, k, v = torch.randn(3, 1, 2, 16, 8).unbind()
    torch.testing.assert_close(run(q, k, v, None), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    with_sink = attention(q, k, v, normalizer="learnable_sink", sink=torch.ones(2), backend="reference")
    torch.testing.assert_close(run(q, k, v, torch.ones(2)), with_sink)
