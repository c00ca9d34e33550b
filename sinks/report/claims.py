"""The paper's claims against the available numbers: supported, contradicted, or cannot tell below some difference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sinks.report import four_bits, gated_units, same_job
from sinks.report.ablation import NOT_THE_PAPERS, Mechanism, Side
from sinks.report.measured import has_roles
from sinks.report.outcomes import ATTENTION, LOSS, RESIDUAL, Comparison, Outcome, VariantResult, words_of
from sinks.report.tables import MEASURES, with_interval
from sinks.report.verdict import Result, Verdict, combine, of_all

Judge = Callable[[VariantResult], Result]

VERDICTS: dict[Outcome, Verdict] = {
    "as the paper expects": "supported",
    "in part": "supported in part",
    "contrary": "contradicted",
    "no effect": "no effect",
}

FIRST_TOKEN, SCORE = (column for column in MEASURES if column.key in (ATTENTION, RESIDUAL))
SMALL = 0.5
# Controls on Bigram-Backcopy: with the input of gated attention halved by a constant, the sink stays without any norm
# gate; with that input doubled under GatedNorm, most of it goes.
START_SCALE = (
    "the controls in experiments/results/start-scale trace this to the norm gate's start at one half, which halves "
    "attention's input"
)
# Sinks replaced by parameters or gates, with the normalizer kept and nothing clipped.
REPLACING: tuple[frozenset[Mechanism], ...] = (
    frozenset({"absorbed"}),
    frozenset({"gated"}),
    frozenset({"absorbed", "gated"}),
)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, numbered as in its list of claims, and its verdict as it is printed."""

    key: str
    claim: str
    verdict: str
    evidence: str


def _levels(result: VariantResult) -> str:
    return f"first-token mass {FIRST_TOKEN.mean(result)}, R {SCORE.mean(result)}"


def _cost(result: VariantResult) -> Result:
    """Whether a variant hurts: a higher loss, or divergence."""
    label, diverged, call = result.variant.label, len(result.variant.diverged), result.changes[LOSS]
    if not result.variant.runs:
        if diverged:
            return Result("supported", f"{label} diverged ({diverged} of {diverged} runs)")
        return Result("cannot tell", f"{label} is unfinished")
    if result.no_effect:
        return Result("no effect", f"{label} changed nothing")
    if result.loss is None:
        return Result("cannot tell", f"{label} has no paired baseline")
    some = f", {diverged} more diverged" if diverged else ""
    text = (
        f"{label}: loss {with_interval(result.loss.difference, 4)} ({words_of(result.loss)}{some}), {_levels(result)}"
    )
    if diverged or call == "higher":
        return Result("supported", text)
    return Result("contradicted", text) if call == "lower" else Result("cannot tell", text, result.loss.visible)


def _takes_over(result: VariantResult) -> Result:
    """Whether a variant changes its side's sink as the paper expects."""
    verdict = VERDICTS.get(result.outcome, "cannot tell")
    return Result(verdict, f"{result.variant.label}: {_levels(result)} ({result.reason or 'no side stated'})")


def _none_of(results: list[VariantResult]) -> Result:
    """Why no variant among these can be judged."""
    unknown = ", ".join(r.variant.label for r in results if "unknown" in r.variant.mechanisms)
    return Result(
        "cannot tell",
        f"Mechanism unknown: {unknown}; state it in ablation.yaml." if unknown else "No such variant was run.",
    )


def _over(
    comparison: Comparison, judge: Judge, kind: Mechanism, *sides: Side, without: Mechanism | None = None
) -> Result:
    """The combined judgment of every variant of a mechanism and side."""
    on_side = [r for r in comparison.results if r.variant.side in sides and r is not comparison.baseline]
    papers = [r for r in on_side if not r.variant.mechanisms & NOT_THE_PAPERS]
    chosen = [r for r in papers if kind in r.variant.mechanisms and without not in r.variant.mechanisms]
    if not chosen:
        return _none_of(on_side)
    return of_all(judge(result) for result in chosen)


def _small(comparison: Comparison, sink: str, key: str, name: str) -> Result:
    """Whether a measure of the baseline's sink is below `SMALL`, in all seeds alike."""
    baseline = comparison.baseline
    if baseline is None:
        return Result("cannot tell", "There is no baseline.")
    spread = baseline.spreads.get(key)
    if spread is None or sink not in baseline.sinks:
        return Result("cannot tell", "The baseline formed no sink that could be measured.")
    text = f"Baseline: {name} {spread.low:.2f} to {spread.high:.2f}, {{}} {SMALL}. {_limit(comparison, sink)}"
    if spread.high < SMALL:
        return Result("supported", text.format("below"))
    if spread.low >= SMALL:
        return Result("contradicted", text.format("not below"))
    return Result("cannot tell", text.format("on both sides of"))


def _limit(comparison: Comparison, sink: str) -> str:
    """What a small value or gain does not show, and where it was measured if it was."""
    side = {ATTENTION: "attention", RESIDUAL: "residual"}[sink]
    if comparison.baseline and any(has_roles(run.folder.path, side) for run in comparison.baseline.variant.runs):
        return "What it does to the loss was probed: its role is in the table of roles."
    return "Whether the sink rescales by context, only probes can tell, and these runs were not probed."


def _double_dissociation(comparison: Comparison) -> Result:
    """Each side's absorbing and gating fixes change their own sink only."""
    texts: list[str] = []
    judged: list[Result] = []
    for side, expectation in (
        ("attention", "empty the attention sink and leave R"),
        ("residual", "lower R and leave the sink"),
    ):
        fixes = [r for r in comparison.results if r.variant.side == side and r.variant.mechanisms in REPLACING]
        own = [_takes_over(r) for r in fixes if r.outcome in VERDICTS]
        if not own:
            return Result("cannot tell", f"No {side}-side fix could be judged.")
        judged += own
        supporting = sum(result.verdict == "supported" for result in own)
        texts.append(f"{supporting} of {len(own)} {side}-side fixes {expectation}")
    return Result(combine(judged)[0], "; ".join(texts) + ".")


def _beyond(more: VariantResult, less: VariantResult) -> bool:
    """Whether `more` exceeds `less` in first-token mass by more than the sum of their half ranges."""
    a, b = more.spreads.get(ATTENTION), less.spreads.get(ATTENTION)
    return a is not None and b is not None and a.mean - b.mean > a.half_range + b.half_range


def _gates_together(comparison: Comparison) -> Result:
    """An attention gate and a norm gate together: both sinks should fall."""
    on_side = [r for r in comparison.results if r.variant.side == "both" and r is not comparison.baseline]
    both = [r for r in on_side if r.variant.mechanisms == {"gated"} and r.variant.runs]
    alone = [r for r in comparison.results if r.variant.side == "attention" and r.variant.mechanisms == {"gated"}]
    if not both:
        return _none_of(on_side)
    found = []
    for result in both:
        judged = _takes_over(result)
        emptier = [r for r in alone if r.changes[ATTENTION] == "falls" and _beyond(result, r)]
        if emptier and judged.verdict != "cannot tell":
            names = ", ".join(f"{r.variant.label} alone reduces it to {FIRST_TOKEN.mean(r)}" for r in emptier)
            text = f"{judged.text}. Unexpectedly, first-token mass is {FIRST_TOKEN.mean(result)} here, although {names}"
            verdict: Verdict = "supported in part" if judged.verdict == "supported" else judged.verdict
            judged = Result(verdict, f"{text}; {START_SCALE}")
        found.append(judged)
    return of_all(found)


def claims(comparison: Comparison) -> list[Claim]:
    """The paper's claims, each with a verdict based on these numbers only."""
    over = partial(_over, comparison)
    gain = (RESIDUAL, "gain_at_sink", "norm gain at the sink dimension / median")
    value = (ATTENTION, "value_norm_ratio_max_head", "value norm of the first token / median, in the strongest head")
    rows: list[tuple[str, str, Result]] = [
        (
            "C1",
            "Without the residual's normalizer the model is worse (RMSNorm replaced by a pointwise function)",
            over(_cost, "unnormalized", "residual"),
        ),
        (
            "C1",
            "Without the attention's normalizer the model is worse (softmax replaced)",
            over(_cost, "unnormalized", "attention"),
        ),
        ("C2", "Clipping the outliers hurts", over(_cost, "clipped", "residual", "both", "attention", without="gated")),
        ("C3", "The norm's gain at the sink dimension is small", _small(comparison, *gain)),
        (
            "C4",
            "A parameter can absorb the residual sink (PreAffine)",
            over(_takes_over, "absorbed", "residual", "both", without="gated"),
        ),
        (
            "C5",
            "A norm gate replaces the residual sink (GatedNorm)",
            over(_takes_over, "gated", "residual", without="unnormalized"),
        ),
        ("C6", "With a gate, GLU is as good as SwiGLU", gated_units.verdict(comparison)),
        ("C7", "Without outliers, quantization to few bits costs less", four_bits.verdict(comparison, "gated")),
        (
            "C7",
            "Where a parameter absorbs the outliers (PreAffine), it costs more",
            four_bits.verdict(comparison, "absorbed"),
        ),
        ("C8", "The sink itself contributes little: the first token's value is small", _small(comparison, *value)),
        (
            "unifying",
            "A parameter can absorb the attention sink (learnable sink)",
            over(_takes_over, "absorbed", "attention", "both", without="gated"),
        ),
        (
            "unifying",
            "An output gate replaces the attention sink",
            over(_takes_over, "gated", "attention", without="unnormalized"),
        ),
        (
            "unifying",
            "Each side's fixes act on their own sink only (double dissociation)",
            _double_dissociation(comparison),
        ),
        ("unifying", "Both gates together replace both sinks", _gates_together(comparison)),
        ("unifying", "A fix does, token by token, what the sink did", same_job.verdict(comparison)),
    ]
    return [Claim(key, claim, _printed(result), result.text) for key, claim, result in rows]


def _printed(result: Result) -> str:
    return result.verdict if result.below is None else f"{result.verdict} below {result.below:.2g}"
