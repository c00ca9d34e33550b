"""The FlashAttention-4 backend: rejected if unavailable; the arguments passed, seen by a stand-in."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from sink_kernels import STATISTICS, attention, flash_attention4


def test_rejected_if_not_installed(make_call):
    if flash_attention4._installed():
        pytest.skip("FlashAttention-4 is installed")
    with pytest.raises(ValueError, match=r"not installed: pip install --pre flash-attn-4.*auto"):
        make_call().run(attention, backend="fa4")


@pytest.mark.parametrize("case", [{}, {"window": 5, "gate": "head"}, {"gate": "element", "scale": 0.3}], ids=str)
@pytest.mark.parametrize("normalizer", ["softmax", "off_by_one", "learnable_sink"])
def test_passes_its_arguments_and_computes_statistics_from_the_lse(normalizer, case, make_call, monkeypatch):
    def flash_attn_func(q, k, v, *, softmax_scale, causal, window_size, learnable_sink, return_lse):
        assert causal
        assert return_lse
        assert q.shape == (1, 33, 2, 16)
        assert learnable_sink is None or (learnable_sink.dtype == torch.float32 and learnable_sink.is_contiguous())
        out, stats = attention(
            *(x.transpose(1, 2) for x in (q, k, v)),
            normalizer="softmax" if learnable_sink is None else "learnable_sink",
            sink=learnable_sink,
            scale=softmax_scale,
            window=None if window_size == (None, None) else window_size[0] + 1,
            stats=("lse",),
        )
        return out.transpose(1, 2), stats["lse"]

    interface = types.ModuleType("flash_attn.cute.interface")
    interface.flash_attn_func = flash_attn_func
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    monkeypatch.setattr(flash_attention4, "unsupported", lambda *_: None)

    call = make_call(normalizer, **case)
    if call.sink is not None:
        call = call._replace(sink=torch.stack([call.sink, call.sink], 1)[:, 0])
    out, stats = call.run(attention, backend="fa4", stats=STATISTICS)
    expected, expected_stats = call.run(attention, backend="reference", stats=STATISTICS)
    torch.testing.assert_close(out, expected)
    for name in STATISTICS:
        torch.testing.assert_close(stats[name], expected_stats[name], rtol=1e-5, atol=1e-5)
