"""`python -m benchmarks.gpu_report.estimate`: what each speed goal may come to on an H100, computed without a GPU.

A training step is taken as a sum: matrix products at a fraction of the peak, attention at the modeled utilization of
the recorded compile report, and everything else at the speed of memory. Nothing overlaps and no time is lost between
kernels. Every fraction is a range, from cautious to hopeful; a goal's estimate is the range of its results.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_report.goals import GOALS, LARGE
from benchmarks.gpu_report.step import BASELINE, COVERED, INTERVAL, Width, parameters, widths
from benchmarks.tables import table
from sinks.models.counting import SCORES
from sinks.plan.activations import decoder_memory
from sinks.plan.layout import PRECISIONS

REPORT = Path(__file__).parents[2] / "experiments/results/kernel-report/triton-3.6.json"
PEAK = 989.4e12  # bfloat16, dense, of the data sheet of an H100 SXM
MEMORY = 3.35e12  # bytes a second, of the same
# Of the peak; that of long bfloat16 products is an assumption, that of attention is below.
PRODUCTS = (0.60, 0.80)
# Of the memory's speed, reached by copies (a clone of a tensor stays some 10 % below it).
COPIES = (0.70, 0.90)
# Published for Triton's attention with a sink on an H100, causal, at head dimension 128: 322 to 419 TFLOP/s.
PUBLISHED = 0.33
# Passes over what autograd keeps: written, read by the next operation, read again and its gradient written and read.
COMPILED_PASSES, EAGER_PASSES = 5, 10
# AdamW in float32: weights, gradients and moments read, weights and moments written, gradients written, read for the
# norm and scaled, zeroed.
OPTIMIZER_BYTES = 4 * 11
# A sampled step is run eagerly and reads each norm's input and what attention keeps this many times more.
STATISTICS_PASSES = 3
# Of torch's attention, published for an H100 at head dimension 128 and 4096 tokens, causal: FlashAttention-2 319 and
# cuDNN 518 TFLOP/s (arXiv:2407.08608).
SDPA = (0.32, 0.52)
TOKEN_BYTES = 4

MFU_GOAL, COVERED_GOAL, STATISTICS_GOAL, LLAMA_GOAL, COMPILED_GOAL, WAITING_GOAL = (goal.text for goal in GOALS)


class Ends(NamedTuple):
    """A cautious and a hopeful number."""

    cautious: float
    hopeful: float

    def __str__(self) -> str:
        low, high = sorted(self)
        return f"{low:.2f} to {high:.2f}"


def at_both(function: Callable[[int], float]) -> Ends:
    """`function` of the cautious (0) and the hopeful (1) end of every range."""
    return Ends(function(0), function(1))


@dataclass(frozen=True)
class Work:
    """A step's work: operations of products and attention, bytes kept for the backward pass, parameters.

    Args:
        name: of the variant.
        linear: operations of matrix products, forward and backward.
        scores: of attention, forward.
        kept: bytes that autograd keeps.
        parameters: number of them.
        head_dim: of attention, a power of two.
    """

    name: str
    linear: float
    scores: float
    kept: int
    parameters: int
    head_dim: int

    @property
    def flops(self) -> float:
        """By which MFU is defined."""
        return self.linear + 3 * self.scores

    def seconds(self, end: int, passes: float = COMPILED_PASSES, attention: float | None = None) -> float:
        """Of one step, compiled by default.

        Args:
            end: 0 for the cautious end of every range, 1 for the hopeful one.
            passes: over what is kept.
            attention: seconds; by the modeled utilization of the kernels if not given.
        """
        products = self.linear / (PEAK * PRODUCTS[end])
        memory = (self.kept * passes + self.parameters * OPTIMIZER_BYTES) / (MEMORY * COPIES[end])
        return products + (self.attention(end) if attention is None else attention) + memory

    def attention(self, end: int) -> float:
        """Forward, and seven products backward where the forward has two."""
        used = {kernel: utilization(kernel, self.head_dim)[end] for kernel in ("forward", "keys", "queries")}
        products = {"forward": 1.0, "keys": 2.0, "queries": 1.5}
        return sum(self.scores * count / (PEAK * used[kernel]) for kernel, count in products.items())


def utilization(kernel: str, head_dim: int) -> Ends:
    """Cautious: half of what is published, or of the model's lower end if that is less; hopeful: the model's lower end.

    Args:
        kernel: forward, keys or queries.
        head_dim: of the heads.
    """
    name = "forward" if kernel == "forward" else f"backward_{kernel}"
    low, _ = next(
        row["utilization"]
        for row in json.loads(REPORT.read_text(encoding="utf-8"))["rows"]
        if row["name"] == f"{name}-d{head_dim}-sm_90"
    )
    return Ends(min(PUBLISHED, low / 2), low)


def work(width: Width, name: str) -> Work:
    """Of a variant with as many parameters as the baseline, counted on its modules."""
    model = width.variant(BASELINE) if name == BASELINE else width.matched(name)
    counts = model.flops_per_token().forward_by_kind
    scores = counts.get(SCORES, 0.0)
    kept = decoder_memory(model.make_decoder, width.context_length, PRECISIONS["bf16-mixed"], "cuda")
    shape = width.shape
    return Work(
        name,
        3 * (sum(counts.values()) - scores) * width.tokens,
        scores * width.tokens,
        kept.per_row.activations(False) * width.batch_size,
        parameters(model),
        shape.head_dim or shape.d_model // shape.n_heads,
    )


def statistics_overhead(baseline: Work, end: int) -> float:
    """Fraction of a step that statistics add at the interval: a step run eagerly, and what they read."""
    sampled = baseline.seconds(end, EAGER_PASSES) + STATISTICS_PASSES * baseline.kept / (MEMORY * COPIES[end])
    key_mass = baseline.scores / (PEAK * utilization("forward", baseline.head_dim)[end])
    return (sampled + key_mass - baseline.seconds(end)) / baseline.seconds(end) / INTERVAL


def estimates() -> list[tuple[str, str, str, str]]:
    """(goal, width, estimate, what it is made of) of every goal at both widths."""
    return [(goal, width.name, number, remark) for width in widths(dry=False) for goal, number, remark in _at(width)]


def _at(width: Width) -> list[tuple[str, str, str]]:
    baseline = work(width, BASELINE)
    variants = [work(width, name) for name in COVERED]
    ratios = {own.name: at_both(partial(_ratio, baseline, own)) for own in variants}
    slowest = min(ratios, key=lambda name: min(ratios[name]))
    rate = at_both(lambda end: width.tokens / baseline.seconds(end))
    overhead = at_both(lambda end: 100 * statistics_overhead(baseline, end))
    theirs = [3.5 * baseline.scores / (PEAK * used) for used in SDPA]

    def against(passes: float) -> str:
        # Cautious: our slow end beside their fast attention.
        return str(at_both(lambda end: baseline.seconds(end, passes, theirs[1 - end]) / baseline.seconds(end)))

    rows = [
        (COVERED_GOAL, str(ratios[slowest]), f"tokens/s of {slowest}, the slowest, over the baseline's"),
        (STATISTICS_GOAL, f"{overhead} %", "a sampled step is eager"),
        (LLAMA_GOAL, against(EAGER_PASSES), "times its tokens/s"),
        (COMPILED_GOAL, against(COMPILED_PASSES), "times theirs"),
        (WAITING_GOAL, "0 %", f"up to {rate.hopeful * TOKEN_BYTES / 1e6:.1f} MB/s are read ahead"),
    ]
    if width.name == LARGE:
        mfu = at_both(lambda end: baseline.flops / baseline.seconds(end) / PEAK)
        rows.insert(0, (MFU_GOAL, str(mfu), f"{rate.cautious:,.0f} to {rate.hopeful:,.0f} tokens/s"))
    return rows


def _ratio(baseline: Work, own: Work, end: int) -> float:
    """Tokens per second of a variant over the baseline's."""
    return baseline.seconds(end) / own.seconds(end)


if __name__ == "__main__":
    print("\n".join(table("goal | width | estimate | ", estimates())[1:]))
