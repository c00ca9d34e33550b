"""Invalid input is rejected with its value, the limit and a remedy, in one line."""

from __future__ import annotations

import pytest
import torch
from sink_kernels import attention, key_mass

X = torch.zeros(2, 4, 6, 8)
KV = torch.zeros(2, 2, 6, 8)
SINK = torch.zeros(4)

INVALID = {
    "three dimensions": ({"q": X[0]}, "4 dimensions"),
    "other length": ({"k": KV[:, :, :5]}, "B, T and D must agree"),
    "other head dimension": ({"k": KV[..., :4], "v": KV[..., :4]}, "B, T and D must agree"),
    "heads do not divide": ({"k": torch.zeros(2, 3, 6, 8), "v": torch.zeros(2, 3, 6, 8)}, "4 query heads.*3 key/value"),
    "no tokens": ({"q": X[:, :, :0], "k": KV[:, :, :0], "v": KV[:, :, :0]}, "at least 1"),
    "values of another shape": ({"v": KV[..., :4]}, "both must be"),
    "integers": ({"q": X.long(), "k": KV.long(), "v": KV.long()}, "int64: supported are float32, bfloat16"),
    "keys of another dtype": ({"k": KV.half()}, "float16.*float32"),
    "values of another dtype": ({"v": KV.half()}, "float16.*float32"),
    "keys on another device": ({"k": KV.to("meta")}, "meta.*cpu"),
    "values on another device": ({"v": KV.to("meta")}, "meta.*cpu"),
    "unknown normalizer": ({"normalizer": "softmax1"}, "'softmax1'.*off_by_one"),
    "sink with a function": ({"normalizer": torch.relu, "sink": SINK}, "sink given.*learnable_sink"),
    "bias with a function": ({"normalizer": torch.relu, "bias": 1.0}, "bias=1.0.*sigmoid"),
    "clip with a function": ({"normalizer": torch.relu, "clip": (0.0, 1.0)}, "clip=.*clipped_softmax"),
    "function that sums the keys": ({"normalizer": lambda s: s.sum(-1)}, r"\(2, 4, 6\).*\(2, 4, 6, 6\).*reshape"),
    "function that rounds": ({"normalizer": lambda s: s.half()}, r"float16 for.*float32.*cast"),
    "sink without its normalizer": ({"sink": SINK}, "sink given.*learnable_sink"),
    "normalizer without its sink": ({"normalizer": "learnable_sink"}, "sink missing"),
    "sink of another shape": ({"normalizer": "learnable_sink", "sink": SINK[:3]}, r"\(3,\).*4 heads"),
    "integer sink": ({"normalizer": "learnable_sink", "sink": SINK.long()}, "int64.*floating point"),
    "sink on another device": ({"normalizer": "learnable_sink", "sink": SINK.to("meta")}, "meta.*cpu"),
    "sigmoid without bias": ({"normalizer": "sigmoid"}, "bias=None.*log"),
    "softmax with bias": ({"bias": 1.0}, "bias=1.0"),
    "bias as a tensor": ({"normalizer": "sigmoid", "bias": torch.zeros(())}, "pass a float"),
    "clipped softmax without clip": ({"normalizer": "clipped_softmax"}, "clip=None.*gamma"),
    "clip that does not stretch": ({"normalizer": "clipped_softmax", "clip": (0.1, 1.0)}, "gamma <= 0"),
    "gate of another shape": ({"gate": X[..., :1]}, r"\(2, 4, 6, 1\).*\(2, 4, 6\).*\(2, 4, 6, 8\)"),
    "integer gate": ({"gate": X.long()}, "int64.*floating point"),
    "gate on another device": ({"gate": X.to("meta")}, "meta.*cpu"),
    "empty window": ({"window": 0}, "window=0.*at least 1"),
    "negative scale": ({"scale": -1.0}, "scale=-1.0.*positive"),
    "infinite softcap": ({"softcap": float("inf")}, "softcap=inf.*finite"),
    "unknown statistic": ({"stats": ("lse", "mean")}, "'mean'.*first_key_mass"),
    "numbers without a statistic": ({"numbers": X}, "numbers without stats"),
    "numbers of another shape": ({"stats": ("lse",), "numbers": X[..., 0]}, r"\(2, 4, 6\).*\(2, 4, 6, .N.\)"),
    "no numbers": ({"stats": ("lse",), "numbers": X[..., :0]}, r"\(2, 4, 6, 0\)"),
    "integer numbers": ({"stats": ("lse",), "numbers": X.long()}, "int64.*floating point"),
    "unknown backend": ({"backend": "cuda"}, "'cuda'.*reference"),
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_input_is_rejected(what):
    arguments, message = INVALID[what]
    tensors = {"q": X, "k": KV, "v": KV} | {name: arguments[name] for name in "qkv" if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in tensors}
    with pytest.raises(ValueError, match=message) as error:
        attention(tensors["q"], tensors["k"], tensors["v"], **options)
    assert "\n" not in str(error.value)


def test_key_mass_rejects_an_lse_of_another_shape():
    with pytest.raises(ValueError, match=r"lse has shape \(2, 4, 5\).*\(2, 4, 6\)"):
        key_mass(X, KV, torch.zeros(2, 4, 5))
