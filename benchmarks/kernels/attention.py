"""Attention: ours with and without each feature, against the baselines, over lengths and head dimensions."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from sink_kernels import STATISTICS, attention, key_mass
from torch import Tensor

from benchmarks.kernels.baselines import AttentionBaseline, attention_baselines
from benchmarks.kernels.measure import Bench, attempt, gate

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


def shapes(head_dim: int, dry: bool) -> list[Shape]:
    """16 k tokens per batch and width 2048, as in published tables; longer sequences as a batch of one."""
    if dry:
        return [Shape(1, 2, 48, 32)]
    lengths = (1024, 2048, 4096, 8192, 16384, 32768)
    return [Shape(max(1, 16384 // t), 2048 // head_dim, t, head_dim) for t in lengths]


def contestants(device: torch.device) -> tuple[list[Contestant], dict[str, str]]:
    """(ours and the available baselines, why the other baselines are missing)."""
    baselines, missing = attention_baselines(device)
    found = _ours() + [_of_baseline(baseline, sink=False) for baseline in baselines]
    return found + [_of_baseline(baseline, sink=True) for baseline in baselines if baseline.sink], missing


def rows(bench: Bench, contestants: list[Contestant], shape: Shape) -> Iterator[dict[str, Any]]:
    """One row of results per contestant, then `key_mass`."""
    for contestant in contestants:
        yield {
            "table": "attention",
            "contestant": contestant.name,
            "ours": contestant.ours,
            "features": list(contestant.features),
            **shape._asdict(),
            **attempt(measure, bench, contestant, shape),
        }
    yield {"table": "key_mass", "ours": True, **shape._asdict(), **attempt(_key_mass, bench, shape)}


def _ours() -> list[Contestant]:
    combinations = ("", "sink", "gate", "sink first_key_mass", "sink gate statistics")
    return [
        Contestant("sink_kernels", features, True, functools.partial(_attention, features=features))
        for features in (tuple(combination.split()) for combination in combinations)
    ]


def _attention(inputs: dict[str, Tensor], features: tuple[str, ...], **more: Any) -> Tensor:
    """The output of our attention with some of its features."""
    of_rows = tuple(name for name in STATISTICS if name != "key_mass")  # which is timed by itself
    stats: Any = of_rows if "statistics" in features else tuple(f for f in features if f in STATISTICS)
    with_sink = "sink" in features
    result: Any = attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        normalizer="learnable_sink" if with_sink else "softmax",
        sink=inputs["sink"] if with_sink else None,
        gate=inputs["gate"] if "gate" in features else None,
        stats=stats,
        **more,
    )
    return result[0] if stats else result


def _of_baseline(baseline: AttentionBaseline, sink: bool) -> Contestant:
    def run(inputs: dict[str, Tensor]) -> Tensor:
        return baseline.run(inputs["q"], inputs["k"], inputs["v"], inputs["sink"] if sink else None)

    return Contestant(baseline.name, ("sink",) if sink else (), False, run)


def _inputs(bench: Bench, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """q, k, v, gate in the memory layout of a projection: [B, T, H, D], transposed."""
    size = (shape.batch, shape.tokens, shape.heads, shape.head_dim)
    *projected, sink = bench.randn(size, size, size, size, (shape.heads,), dtype=dtype)
    inputs = dict(zip(("q", "k", "v", "gate"), (x.transpose(1, 2).requires_grad_() for x in projected), strict=True))
    return inputs | {"sink": sink.float().requires_grad_()}


def measure(bench: Bench, contestant: Contestant, shape: Shape) -> dict[str, Any]:
    """Its error on a short sequence with few heads, and its speed if that error passes."""
    short = Shape(1, 2, min(shape.tokens, _GATE_TOKENS), shape.head_dim)
    own, exact = _inputs(bench, short), _inputs(bench, short, torch.float64)
    features = tuple(feature for feature in contestant.features if feature in ("sink", "gate"))
    expected = _attention(exact, features, backend="reference")
    row = gate(contestant.run(own), [own[n] for n in "qkv"], expected, [exact[n] for n in "qkv"])
    if "refused" in row:
        return row
    inputs = _inputs(bench, shape)
    row |= bench.forward_and_backward(lambda: contestant.run(inputs), [inputs[name] for name in "qkv"])
    flops = {"forward": shape.forward_flops, "backward": 2.5 * shape.forward_flops}
    return row | {f"{way}_tflops": count / row[f"{way}_ms"] / 1e9 for way, count in flops.items()}


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
