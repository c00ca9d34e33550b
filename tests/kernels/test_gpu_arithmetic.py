"""What a GPU computes approximately, modeled under the interpreter at the largest error that the PTX manual allows.

The interpreter is exact and cannot run inline assembly: without a model an approximation passes every test and is
wrong on the first GPU. An instruction without a model here fails.
"""

from __future__ import annotations

import math
import types

import numpy as np
import pytest
import torch
from sink_kernels import tiles

from benchmarks.kernels.checks import attention_checks, norm_checks

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the instructions themselves"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning"),
]
TANH, TWO_ULP = 2.0**-11, 2.0**-22


def _approximate(function, bound):
    """`function` with a relative error of `bound` that changes its sign all along the line."""
    return lambda *x: (function(*x) * (1 + bound * np.sin(np.nan_to_num(1e4 * x[-1])))).astype(x[0].dtype)


@pytest.fixture(autouse=True)
def gpu_arithmetic(monkeypatch, triton_device):
    """The interpreter as an NVIDIA GPU would compute: same compile-time constants, same instructions."""
    from sink_kernels import triton_attention, triton_gated_norm
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    assembly = {"tanh.approx.f32": _approximate(np.tanh, TANH)}

    def inline(self, text, constraints, values, *_):
        result = self.unary_op(values[0], assembly[text.split()[0]])
        return types.SimpleNamespace(get_result=lambda _: result)

    monkeypatch.setattr(builder, "create_inline_asm", inline)
    for name, function in {"exp2": np.exp2, "log2": np.log2, "rsqrt": lambda x: 1 / np.sqrt(x)}.items():
        model = _approximate(function, TWO_ULP)
        monkeypatch.setattr(builder, f"create_{name}", lambda self, x, model=model: self.unary_op(x, model))
    divide = _approximate(np.divide, TWO_ULP)
    monkeypatch.setattr(builder, "create_fdiv", lambda self, x, y: self.binary_op(x, y, divide))
    for module in (triton_attention, triton_gated_norm):
        monkeypatch.setattr(module, "is_nvidia", lambda _: True)
    monkeypatch.setattr(triton_attention, "tile_for", lambda *_: tiles.Tile(64, 64, 4, 2))


# The bias sets the size of the weights, so a short sequence has those of a long one.
CASES = [("sigmoid", {"bias": -math.log(tokens)}) for tokens in (300, 1024, 4096)]
CASES += [("sigmoid", {"softcap": 2.0, "window": 50}), ("softmax", {"softcap": 2.0}), ("learnable_sink", {})]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("normalizer", "options"), CASES, ids=str)
def test_attention(normalizer, options, dtype, make_call):
    call = make_call(normalizer, tokens=100, heads=1, gate="head", dtype=dtype, **options)
    for name, check in attention_checks(call, dtype).items():
        assert check.passed, f"{name}: {check.error:.1e}, the limit is {check.limit:.1e}"


@pytest.mark.parametrize("offset", [-7.0, 0.0, 7.0])
def test_gated_norm(offset):
    # bfloat16 rounds the operands of its products, which a closed gate shows more than any instruction.
    for name, check in norm_checks((70, 96), 16, True, torch.float16, "cpu", offset=offset).items():
        assert check.passed, f"{name}: {check.error:.1e}, the limit is {check.limit:.1e}"
