"""Baselines compute the same function, run at full speed and do not modify reused tensors.

What runs on a GPU only is called with arguments that fit the signature of the installed function. Tried with fla-core
0.6.0 (in Triton's interpreter), liger-kernel 0.8.5 and flash-attn-4 4.0.0b36 (signatures) on torch 2.14.1, November
2026.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sink_kernels import attention, flash_attention4

from benchmarks.kernels import baselines


def installed_signature(package: str, path: str, function: str) -> inspect.Signature:
    """As written in the installed file: importing it may need a GPU or compilers of its own."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    (folder,) = spec.submodule_search_locations
    body = ast.parse((Path(folder) / path).read_text()).body
    (found,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
    for argument in ast.walk(found.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    names: dict = {}
    exec(f"def {function}({ast.unparse(found.args)}): ...", names)
    return inspect.signature(names[function])


def test_ligers_signature_accepts_the_call(monkeypatch):
    signature = installed_signature("liger_kernel", "transformers/functional.py", "liger_rms_norm")
    bound = []
    module = types.SimpleNamespace(liger_rms_norm=lambda *args, **more: bound.append(signature.bind(*args, **more)))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", module)
    x, weight = torch.randn(2, 8), torch.ones(8)
    baselines.norm_baselines(torch.device("cuda"))[0]["Liger RMSNorm"](x, weight)
    ((given, *others),) = [bound[0].arguments.values()]
    assert given is x
    assert others[0] is weight
    assert bound[0].arguments["eps"] == 1e-6
    assert bound[0].arguments["in_place"] is False


@pytest.mark.parametrize("sink", [None, torch.ones(2)], ids=["softmax", "sink"])
def test_flash_attention4s_signature_accepts_the_call(sink, monkeypatch):
    signature = installed_signature("flash_attn", "cute/interface.py", "flash_attn_func")
    bound = []

    def flash_attn_func(*args, **more):
        bound.append(signature.bind(*args, **more).arguments)
        q = args[0]
        return q.clone(), q.new_zeros(q.shape[0], q.shape[2], q.shape[1])

    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", module)
    monkeypatch.setattr(flash_attention4, "unsupported", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    q, k, v = torch.randn(3, 1, 2, 16, 8).unbind()
    out = baselines._flash_attention4(torch.device("cuda"))(q, k, v, sink)
    assert out.shape == q.shape
    (given,) = bound
    assert (given["causal"], given["return_lse"], given["window_size"]) == (True, True, (None, None))
    assert given["learnable_sink"] is None if sink is None else torch.equal(given["learnable_sink"], sink)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sink", [False, True], ids=["softmax", "sink"])
def test_fla_computes_attention_with_a_sink(sink, triton_device):
    pytest.importorskip("fla.ops.attn.parallel", reason="fla is not installed", exc_type=ImportError)
    tensors = [torch.randn(1, heads, 20, 16, device=triton_device, requires_grad=True) for heads in (4, 2, 2)]
    tensors += [torch.ones(4, device=triton_device, requires_grad=True)] if sink else []
    q, k, v, *sinks = tensors
    out = baselines._fla()(q, k, v, *sinks or [None])
    options = {"normalizer": "learnable_sink", "sink": sinks[0]} if sink else {}
    expected = attention(q, k, v, **options, backend="reference")
    close = {"rtol": 1e-2, "atol": 1e-2} if triton_device == "cuda" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(out, expected, **close)
    grads = [torch.autograd.grad(x, tensors, torch.ones_like(x)) for x in (out, expected)]
    for own, exact in zip(*grads, strict=True):
        torch.testing.assert_close(own, exact, **close)


def test_sdpa_runs_with_the_named_kernel_alone():
    q, k, v = torch.randn(3, 1, 2, 16, 8).unbind()
    expected = attention(q, k, v, backend="reference")
    torch.testing.assert_close(baselines._sdpa("FLASH_ATTENTION")(q, k, v, None), expected)
    with pytest.raises(RuntimeError, match="kernel"):  # cuDNN has none for the CPU: torch takes no other instead
        baselines._sdpa("CUDNN_ATTENTION")(q, k, v, None)


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
