"""bfloat16 in Triton's interpreter, which stores it as uint16 and computes on the raw bits (triton-lang/triton#11584).

Wraps the interpreter's builder: operands are widened to float32, results rounded to nearest even. Reductions of
bfloat16 stay wrong, which is why the kernels reduce only in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def widen(handle: Any) -> np.ndarray:
    """float32 values of an interpreter handle that holds bfloat16; any other handle's data as they are."""
    import triton.language as tl

    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """The uint16 bits of float32 `values` rounded to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def install() -> None:
    """Patch the interpreter; works on Triton 3.6 to 3.9."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    handle_of = interpreter.TensorHandle
    create_dot, binary_op, unary_op = builder.create_dot, builder.binary_op, builder.unary_op
    cast_impl, create_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp
    on_bits = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
            return create_dot(self, a, b, d, *rest)
        return handle_of(np.matmul(widen(a), widen(b), dtype=d.data.dtype) + d.data, d.dtype.scalar)

    def binary(self: Any, a: Any, b: Any, op: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16 or op in on_bits:
            return binary_op(self, a, b, op)
        result = op(widen(a), widen(b))
        return handle_of(result, tl.int1) if result.dtype == bool else handle_of(narrow(result), tl.bfloat16)

    def unary(self: Any, a: Any, op: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return unary_op(self, a, op)
        return handle_of(narrow(op(widen(a))), tl.bfloat16)

    def convert(self: Any, source: Any, target: Any, plain: Any, *rest: Any) -> Any:
        from_bf16, to_bf16 = source.dtype.scalar == tl.bfloat16, target.scalar == tl.bfloat16
        if from_bf16 and not to_bf16:
            wide = handle_of(widen(source), tl.float32)
            return wide if target.scalar == tl.float32 else plain(self, wide, target, *rest)
        if to_bf16 and not from_bf16:
            return handle_of(narrow(source.data.astype(np.float32)), tl.bfloat16)
        return plain(self, source, target, *rest)

    builder.create_dot, builder.binary_op, builder.unary_op = dot, binary, unary
    builder.cast_impl = lambda self, source, target: convert(self, source, target, cast_impl)
    builder.create_fp_to_fp = lambda self, source, target, mode: convert(self, source, target, create_fp_to_fp, mode)
