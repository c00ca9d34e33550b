"""Correctness checks of the kernels: random calls and their errors against the reference in float64.

The tests run them under Triton's interpreter, `make gpu-report` on a GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sink_kernels.attention import attention
from sink_kernels.gated_norm import gated_norm
from sink_kernels.options import STATISTICS, Options
from sink_kernels.validation import validate_scores
from torch import Tensor

# (output, gradients, sink's gradient against the sum of its terms, statistics), relative to float64.
ATTENTION_TOLERANCES = {
    torch.float32: (2e-6, 5e-6, 1e-5, 2e-6),
    torch.float16: (6e-4, 1e-3, 5e-3, 2e-6),
    torch.bfloat16: (4e-3, 6e-3, 5e-3, 2e-6),
}
# Layouts in memory of the same values: of a fused projection's column, of another order of dimensions, of a projection
# [B, T, H, D] read as [B, H, T, D].
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "stride 2": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "reversed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "projected": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() > 2 else x,
}
# (output, gradients)
NORM_TOLERANCES = {torch.float32: (2e-6, 1e-5), torch.float16: (6e-4, 2e-3), torch.bfloat16: (4e-3, 8e-3)}


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN, so that elements not written by a kernel are detected."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def wrong(checks: Mapping[str, Check]) -> str:
    """The failed checks, each with its error and limit; empty if all passed."""
    return ", ".join(f"{name} {c.error:.1e} over {c.limit:.1e}" for name, c in checks.items() if not c.passed)


class Check(NamedTuple):
    """A relative error and its limit."""

    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error < self.limit


class Call(NamedTuple):
    """The tensors of one attention call and its remaining keyword arguments."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink: Tensor | None
    gate: Tensor | None
    options: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that can receive a gradient, by name."""
        named = {"q": self.q, "k": self.k, "v": self.v, "sink": self.sink, "gate": self.gate}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def cast(self, dtype: torch.dtype) -> Call:
        """Detached copies of `dtype` (the sink at least float32) that require gradients."""
        at_least = {"sink": torch.promote_types(dtype, torch.float32)}
        copies = {
            name: x.detach().to(at_least.get(name, dtype)).clone().requires_grad_() for name, x in self.tensors.items()
        }
        return Call(copies["q"], copies["k"], copies["v"], copies.get("sink"), copies.get("gate"), dict(self.options))

    def to(self, device: str | torch.device) -> Call:
        """The same call on another device."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in self.tensors.items()}
        return self._replace(**moved)

    def laid_out(self, layout: str) -> Call:
        """The same values, each tensor in one of `LAYOUTS`, differentiable."""
        laid: dict[str, Any] = {name: LAYOUTS[layout](x) for name, x in self.tensors.items()}
        return self._replace(**laid)

    def run(self, function: Callable[..., Any], **more: Any) -> Any:
        """Call `function`, an attention, on these tensors and options."""
        return function(self.q, self.k, self.v, sink=self.sink, gate=self.gate, **self.options, **more)

    def resolved(self) -> Options:
        """The options with all defaults filled in."""
        given = {"bias": None, "clip": None, "scale": None, "window": None, "softcap": None, **self.options}
        return validate_scores(self.q, self.k, **given)


def make_call(
    normalizer: str = "softmax",
    *,
    batch: int = 1,
    heads: int = 2,
    kv_heads: int | None = None,
    tokens: int = 33,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    gate: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Call:
    """Random inputs on the CPU with everything `normalizer` needs; `gate` is None, "head" or "element"."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q = randn(batch, heads, tokens, head_dim).to(dtype)
    k = randn(batch, kv_heads or heads, tokens, head_dim).to(dtype)
    v = randn(batch, kv_heads or heads, tokens, head_dim).to(dtype)
    sink = randn(heads) + 1.0 if normalizer == "learnable_sink" else None
    gates = {None: None, "head": randn(batch, heads, tokens).to(dtype), "element": randn(*q.shape).to(dtype)}
    if normalizer == "sigmoid":
        options.setdefault("bias", -math.log(tokens))
    if normalizer == "clipped_softmax":
        options.setdefault("clip", (-0.03, 1.02))
    return Call(q, k, v, sink, gates[gate], {"normalizer": normalizer, **options})


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`; NaN anywhere is infinite."""
    actual, expected = actual.double(), expected.double()
    return _finite((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def _finite(error: Tensor) -> float:
    return math.inf if error.isnan() else error.item()


def out_and_grads(
    call: Call, function: Callable[..., Any], expanded: bool = False, **more: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of `function` and the gradient of each tensor for one fixed random dOut."""
    out = call.run(function, **more)
    out = out[0] if isinstance(out, tuple) else out
    return out.detach(), dict(zip(call.tensors, gradients(out, list(call.tensors.values()), expanded), strict=True))


def gradients(out: Tensor, inputs: Sequence[Tensor], expanded: bool = False) -> tuple[Tensor, ...]:
    """The gradient of each input for one fixed random dOut, rounded once so that all dtypes see the same numbers.

    If `expanded`, dOut is one number per row, repeated with stride 0 as in the gradient of a sum.
    """
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(out)
    return torch.autograd.grad(out, list(inputs), grad[..., :1].expand_as(out) if expanded else grad)


def attention_checks(call: Call, dtype: torch.dtype, layout: str | None = None) -> dict[str, Check]:
    """Output, every gradient, and every statistic of the Triton attention in `dtype`.

    With a layout of `LAYOUTS` the kernels read tensors stored so, and an expanded gradient of the output.
    A GPU multiplies float32 in three TF32 passes and approximates exp, hence the wider limits.
    """
    own, exact = call.cast(dtype), call.cast(torch.float64)
    own = own if layout is None else own.laid_out(layout)
    of_out, of_grads, of_sink, of_stats = ATTENTION_TOLERANCES[dtype]
    if call.q.device.type == "cuda":
        of_out, of_grads, of_stats = 5 * of_out, 5 * of_grads, 1e-5
    out, grads = out_and_grads(own, attention, layout is not None, backend="triton")
    expected, expected_grads = out_and_grads(exact, attention, layout is not None, backend="reference")
    checks = {"output": Check(relative_error(out, expected), of_out)}
    # If a query sees only one key, dq and dk are zero up to rounding.
    one_key = call.q.shape[2] == 1 or call.options.get("window") == 1
    floor = 0.1 * expected_grads["v"].norm() if one_key else torch.tensor(1e-30, device=out.device)
    for name, grad in grads.items():
        exact_grad = expected_grads[name]
        scale = expected.abs().sum() + 1 if name == "sink" else exact_grad.norm().clamp_min(floor)
        error = _finite((grad.double() - exact_grad).norm() / scale)
        checks[f"gradient of {name}"] = Check(error, of_sink if name == "sink" else of_grads)

    numbers = torch.stack([own.q.detach().float().norm(dim=-1, p=p) for p in (1, 2, 3)], dim=-1)
    _, stats = own.run(attention, backend="triton", stats=STATISTICS, numbers=numbers)
    _, expected_stats = exact.run(attention, backend="reference", stats=STATISTICS, numbers=numbers)
    for name, value in stats.items():
        scale = expected_stats[name].abs().max().clamp_min(1.0)
        checks[name] = Check(_finite((value - expected_stats[name]).abs().max() / scale), 4 * of_stats)
    return checks


def graph_checks(call: Call, dtype: torch.dtype) -> dict[str, Check]:
    """A replayed CUDA graph of a forward and backward pass, on inputs written after its capture, against a plain pass.

    The kernels are deterministic, so both must agree bit for bit.
    """
    own = call.cast(dtype)
    inputs = list(own.tensors.values())
    grad = torch.randn_like(own.q)

    def step() -> list[Tensor]:
        out, stats = own.run(attention, backend="triton", stats=("lse", "first_key_mass", "entropy"))
        return [x.detach() for x in (out, *stats.values(), *torch.autograd.grad(out, inputs, grad))]

    replay, results = capture(step)
    with torch.no_grad():
        for x in inputs:
            x.copy_(x.flip(-1))
    replay()
    replayed = [x.clone() for x in results]
    names = ["output", "lse", "first_key_mass", "entropy", *(f"gradient of {name}" for name in own.tensors)]
    expected = step()
    return {name: Check(relative_error(x, y), 1e-12) for name, x, y in zip(names, replayed, expected, strict=True)}


def capture(function: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """A CUDA graph's replay, and the tensors into which it writes what `function` returns."""
    # A capture must not compile, load or tune anything, hence the calls before it, on a stream of their own as torch
    # demands.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph.replay, results


def make_norm_inputs(
    shape: Sequence[int],
    rank: int,
    pre_affine: bool,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    parameters: torch.dtype | None = None,
) -> list[Tensor]:
    """x [..., D], gain [D], w_down [rank, D], w_up [D, rank]; with `pre_affine` its gain [D]. All require gradients."""
    generator = torch.Generator().manual_seed(0)
    width = shape[-1]

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    # One channel with a massive activation and a small gain, as in trained models.
    x = randn(*shape) * 2
    x[..., 3] *= 50
    weight = 1 + 0.1 * randn(width)
    weight[3] = 0.05
    tensors = [x, weight, 0.2 * randn(rank, width), 0.5 * randn(width, rank)]
    tensors += [1 + 0.3 * randn(width)] if pre_affine else []
    # Rounded once, so that every dtype sees the same numbers.
    tensors = [tensor.to(torch.bfloat16).to(device) for tensor in tensors]
    dtypes = [dtype] + [parameters or dtype] * 4
    return [tensor.to(to).requires_grad_() for tensor, to in zip(tensors, dtypes, strict=False)]


def run_norm(inputs: Sequence[Tensor], **options: Any) -> Any:
    """GatedNorm of the result of `make_norm_inputs`."""
    names = ("x", "weight", "w_down", "w_up", "pre_affine")
    arguments: dict[str, Any] = dict(zip(names, inputs, strict=False))
    return gated_norm(**arguments, **options)


def norm_and_grads(inputs: Sequence[Tensor], **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of GatedNorm and the gradient of each input for one fixed random dy."""
    y = run_norm(inputs, **options)
    y = y[0] if isinstance(y, tuple) else y
    return y.detach(), gradients(y, inputs)


def norm_checks(
    shape: Sequence[int], rank: int, pre_affine: bool, dtype: torch.dtype, device: str | torch.device, **options: Any
) -> dict[str, Check]:
    """Output, every gradient and every statistic of the Triton GatedNorm in `dtype`."""
    own = make_norm_inputs(shape, rank, pre_affine, dtype, device)
    exact = make_norm_inputs(shape, rank, pre_affine, torch.float64, device)
    of_y, of_grads = NORM_TOLERANCES[dtype]
    y, grads = norm_and_grads(own, backend="triton", **options)
    expected, expected_grads = norm_and_grads(exact, backend="reference", **options)
    checks = {"output": Check(relative_error(y, expected), of_y)}
    names = ("x", "gain", "w_down", "w_up", "pre_affine")
    for name, grad, exact_grad in zip(names, grads, expected_grads, strict=False):
        checks[f"gradient of {name}"] = Check(relative_error(grad, exact_grad), of_grads)
    _, stats = run_norm(own, backend="triton", stats=("absmax", "fourth_moment"), **options)
    _, expected_stats = run_norm(exact, stats=("absmax", "fourth_moment"), **options)
    return checks | {
        name: Check(relative_error(value, expected_stats[name]), 4 * of_y) for name, value in stats.items()
    }
