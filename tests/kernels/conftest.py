"""Helpers of the kernel tests, as fixtures so that they work in every pytest import mode."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import checks
from benchmarks.kernels.checks import Call

# Triton decides at its import whether kernels are compiled or interpreted.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _oracle(call: Call) -> tuple[Tensor, dict[str, Tensor]]:
    """Attention and its statistics query by query, in scalar steps; differentiable."""
    q, k, v, sink, gate, options = call
    batch, heads, tokens, head_dim = q.shape
    group = heads // k.shape[1]
    scale = options.get("scale") or head_dim**-0.5
    names = ("lse", "first_key_mass", "sink_mass", "entropy", "max_logit")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    outs = []
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                first = max(0, i - (options.get("window") or tokens) + 1)
                s = scale * (k[b, h // group, first : i + 1] @ q[b, h, i])
                if options.get("softcap"):
                    s = options["softcap"] * torch.tanh(s / options["softcap"])
                parts = s.exp()
                rest = {"off_by_one": parts.new_ones(()), "learnable_sink": None if sink is None else sink[h].exp()}
                extra = rest.get(options["normalizer"])
                total = parts.sum() if extra is None else parts.sum() + extra
                p = parts / total
                if options["normalizer"] == "sigmoid":
                    p = 1 / (1 + torch.exp(-s - options["bias"]))
                    total = p.sum()
                if options["normalizer"] == "clipped_softmax":
                    gamma, zeta = options["clip"]
                    p = ((zeta - gamma) * p + gamma).clamp(0, 1)
                out = p @ v[b, h // group, first : i + 1]
                if gate is not None:
                    out = out / (1 + torch.exp(-gate[b, h, i]))
                outs.append(out)
                sink_mass = p.new_zeros(()) if extra is None else extra / total
                normalized = p / p.sum() if options["normalizer"] in ("sigmoid", "clipped_softmax") else p
                everything = torch.cat([normalized, sink_mass.view(1)]).nan_to_num(0.0)
                positive = everything[everything > 0]
                rows["lse"].append(total.log())
                rows["first_key_mass"].append(normalized[0].nan_to_num(0.0) if first == 0 else p.new_zeros(()))
                rows["sink_mass"].append(sink_mass)
                rows["entropy"].append(-(positive * positive.log()).sum())
                rows["max_logit"].append(s.max())
    stats = {name: torch.stack(values).view(batch, heads, tokens).detach() for name, values in rows.items()}
    return torch.stack(outs).view(q.shape), stats


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where Triton kernels run: "cuda", or "cpu" with the interpreter and its bfloat16 mended."""
    if torch.cuda.is_available():
        return "cuda"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.sum, InterpretedFunction):
        pytest.fail("triton was imported before TRITON_INTERPRET=1 was set: set it first in tests/conftest.py")
    spec = importlib.util.spec_from_file_location("interpreter_bf16", Path(__file__).parent / "interpreter_bf16.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install()
    return "cpu"


@pytest.fixture
def close(triton_device: str) -> dict[str, float]:
    """Tolerances for float32 results of two different paths: a GPU multiplies in three TF32 passes."""
    return {"rtol": 1e-4, "atol": 1e-4} if triton_device == "cuda" else {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN, so that elements not written by a kernel are detected."""
    with checks.poisoned_memory():
        assert torch.empty(3).isnan().all()
        yield


@pytest.fixture
def make_call() -> Callable[..., Call]:
    return checks.make_call


@pytest.fixture
def relative_error() -> Callable[[Tensor, Tensor], float]:
    return checks.relative_error


@pytest.fixture
def oracle() -> Callable[[Call], tuple[Tensor, dict[str, Tensor]]]:
    return _oracle


@pytest.fixture
def out_and_grads() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """(call, attention function, **more) -> the output and the gradient of each tensor for one fixed random dOut."""
    return checks.out_and_grads
