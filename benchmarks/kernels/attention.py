"""Attention: ours with each feature on and off, against the baselines, over lengths and head dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from sink_kernels import STATISTICS, attention, key_mass
from torch import Tensor

from benchmarks.kernels.baselines import AttentionBaseline, attention_baselines
from benchmarks.kernels.measure import Bench, reason_of, worst_relative_error

# Against float64, output and gradients of q, k, v in bfloat16; twice what a textbook implementation shows.
TOLERANCE = 2e-2
_GATE_TOKENS = 384


class Shape(NamedTuple):
    """q [batch, heads, tokens, head_dim]."""

    batch: int
    heads: int
    tokens: int
    head_dim: int

    @property
    def forward_flops(self) -> float:
        """Two products over the causal half of T x T."""
        return 4 * self.batch * self.heads * self.tokens**2 * self.head_dim / 2


class Contestant(NamedTuple):
    """`run(inputs)` computes attention of inputs q, k, v, sink, gate; `features` name what it computes."""

    name: str
    features: tuple[str, ...]
    ours: bool
    run: Callable[[dict[str, Tensor]], Tensor]


def shapes(bench: Bench) -> list[Shape]:
    """16 k tokens a batch and a width of 2048, as published tables have it; longer texts alone in their batch."""
    if bench.dry:
        return [Shape(1, 2, 48, 32)]
    lengths = (1024, 2048, 4096, 8192, 16384, 32768)
    return [Shape(max(1, 16384 // t), 2048 // d, t, d) for d in bench.head_dims for t in lengths]


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """One row of results a contestant and shape, then `key_mass`."""
    baselines, missing = attention_baselines(bench.device)
    yield {"table": "missing baselines", **missing}
    contestants = _ours() + [_of_baseline(baseline, sink=False) for baseline in baselines]
    contestants += [_of_baseline(baseline, sink=True) for baseline in baselines if baseline.sink]
    for shape in shapes(bench):
        for contestant in contestants:
            yield {
                "table": "attention",
                "contestant": contestant.name,
                "ours": contestant.ours,
                "features": list(contestant.features),
                **shape._asdict(),
                **_measure(bench, contestant, shape),
            }
        yield {"table": "key_mass", "ours": True, **shape._asdict(), **_attempt_key_mass(bench, shape)}


def _ours() -> list[Contestant]:
    def contestant(*features: str) -> Contestant:
        stats = {"first_key_mass": ("first_key_mass",), "statistics": STATISTICS}
        taken: Any = next((stats[feature] for feature in features if feature in stats), ())

        def run(inputs: dict[str, Tensor]) -> Tensor:
            result: Any = attention(
                inputs["q"],
                inputs["k"],
                inputs["v"],
                normalizer="learnable_sink" if "sink" in features else "softmax",
                sink=inputs["sink"] if "sink" in features else None,
                gate=inputs["gate"] if "gate" in features else None,
                stats=taken,
            )
            return result[0] if taken else result

        return Contestant("sink_kernels", features, True, run)

    return [
        contestant(),
        contestant("sink"),
        contestant("gate"),
        contestant("sink", "first_key_mass"),
        contestant("sink", "gate", "statistics"),
    ]


def _of_baseline(baseline: AttentionBaseline, sink: bool) -> Contestant:
    def run(inputs: dict[str, Tensor]) -> Tensor:
        return baseline.run(inputs["q"], inputs["k"], inputs["v"], inputs["sink"] if sink else None)

    return Contestant(baseline.name, ("sink",) if sink else (), False, run)


def _inputs(bench: Bench, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """q, k, v, gate as slices of a projection would lie in memory: [B, T, H, D], transposed."""
    generator = torch.Generator(bench.device).manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=bench.device)

    inputs = {}
    for name in ("q", "k", "v", "gate"):
        values = randn(shape.batch, shape.tokens, shape.heads, shape.head_dim).to(torch.bfloat16).to(dtype)
        inputs[name] = values.transpose(1, 2).requires_grad_()
    inputs["sink"] = randn(shape.heads).requires_grad_()
    return inputs


def _gradients(out: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    generator = torch.Generator(out.device).manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, device=out.device).to(torch.bfloat16).to(out.dtype)
    return [out, *torch.autograd.grad(out, [inputs["q"], inputs["k"], inputs["v"]], grad)]


def error_of(bench: Bench, contestant: Contestant, shape: Shape) -> float:
    """Worst relative error of output, dq, dk, dv against the reference in float64, on a short text of few heads."""
    short = Shape(1, 2, min(shape.tokens, _GATE_TOKENS), shape.head_dim)
    own, exact = _inputs(bench, short), _inputs(bench, short, torch.float64)
    has_sink = "sink" in contestant.features
    expected = attention(
        exact["q"],
        exact["k"],
        exact["v"],
        normalizer="learnable_sink" if has_sink else "softmax",
        sink=exact["sink"] if has_sink else None,
        gate=exact["gate"] if "gate" in contestant.features else None,
        backend="reference",
    )
    return worst_relative_error(_gradients(contestant.run(own), own), _gradients(expected, exact))


def _measure(bench: Bench, contestant: Contestant, shape: Shape) -> dict[str, Any]:
    try:
        error = error_of(bench, contestant, shape)
        if error > TOLERANCE:
            return {"error": error, "refused": f"wrong: relative error {error:.1e}, the limit is {TOLERANCE:.0e}"}
        inputs = _inputs(bench, shape)
        times = bench.forward_and_backward(lambda: contestant.run(inputs), [inputs["q"], inputs["k"], inputs["v"]])
    # Whoever refuses a shape or runs out of memory does so in its own way; the table says so and goes on.
    except Exception as failure:
        return {"refused": reason_of(failure)}
    forward, backward = times["forward_ms"], times["backward_ms"]
    assert forward is not None
    assert backward is not None
    return {
        "error": error,
        **times,
        "forward_tflops": shape.forward_flops / forward / 1e9,
        "backward_tflops": 2.5 * shape.forward_flops / backward / 1e9,
    }


def _attempt_key_mass(bench: Bench, shape: Shape) -> dict[str, Any]:
    try:
        return _key_mass(bench, shape)
    except Exception as failure:
        return {"refused": reason_of(failure)}


def _key_mass(bench: Bench, shape: Shape) -> dict[str, Any]:
    inputs = {name: tensor.detach() for name, tensor in _inputs(bench, shape).items()}
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    _, stats = attention(q, k, v, stats=("lse",))
    total = key_mass(q, k, stats["lse"]).sum(-1)
    error = (total / shape.tokens - 1).abs().max().item()
    if error > 1e-3:
        return {"error": error, "refused": f"wrong: mass is off by {error:.1e}"}
    forward = bench.milliseconds(lambda: attention(q, k, v))
    own = bench.milliseconds(lambda: key_mass(q, k, stats["lse"]))
    return {"error": error, "forward_ms": own, "of_a_forward": own / forward}
