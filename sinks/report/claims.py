"""The paper's claims against the available numbers: supports, contradicts, or cannot show."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sinks.report.ablation import Ablation, Mechanism, Side
from sinks.report.measured import QUANTIZATION, results
from sinks.report.outcomes import ATTENTION, LOSS, RESIDUAL, Comparison, Outcome, VariantResult
from sinks.report.tables import MEASURES

Verdict = Literal["supports", "contradicts", "mixed", "cannot show"]
Result = tuple[Verdict, str]
Judge = Callable[[VariantResult], Result]

VERDICTS: dict[Outcome, Verdict] = {"as the paper expects": "supports", "in part": "mixed", "contrary": "contradicts"}

FIRST_TOKEN, SCORE = (column for column in MEASURES if column.key in (ATTENTION, RESIDUAL))
SMALL = 0.5
TINY = 1e7
AT_THIS_SCALE = "at this scale the sink dimension is mostly a constant bias channel"
# Sinks replaced by parameters or gates, with the normalizer kept and nothing clipped.
REPLACING: tuple[frozenset[Mechanism], ...] = (
    frozenset({"absorbed"}),
    frozenset({"gated"}),
    frozenset({"absorbed", "gated"}),
)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and its verdict."""

    key: str
    claim: str
    verdict: Verdict
    evidence: str


def tiny(ablation: Ablation) -> bool:
    """Whether the models are so small that probes found a constant sink dimension (scratch runs, 0.4 M)."""
    parameters = [value for run in ablation.runs if (value := run.value("parameters")) is not None]
    return not parameters or max(parameters) < TINY


def _levels(result: VariantResult) -> str:
    return f"first-token mass {FIRST_TOKEN.mean(result)}, R {SCORE.mean(result)}"


def _combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Combine verdicts: "mixed" if they disagree; "cannot show" does not count."""
    known = set(verdicts) - {"cannot show"}
    return "mixed" if len(known) > 1 else next(iter(known), "cannot show")


def _cost(result: VariantResult) -> Result:
    """Whether a variant hurts: a higher loss, or divergence."""
    label, diverged, call = result.variant.label, len(result.variant.diverged), result.changes[LOSS]
    if not result.variant.runs:
        if diverged:
            return "supports", f"{label} diverged ({diverged} of {diverged} runs)"
        return "cannot show", f"{label} is unfinished"
    if result.no_effect:
        return "cannot show", f"{label} clipped nothing"
    if result.loss_difference is None:
        return "cannot show", f"{label} has no paired baseline"
    some = f", {diverged} more diverged" if diverged else ""
    text = f"{label}: loss {result.loss_difference.mean:+.3f} ({call}{some}), {_levels(result)}"
    if diverged or call == "higher":
        return "supports", text
    return ("cannot show" if call == "one seed" else "contradicts"), text


def _takes_over(result: VariantResult) -> Result:
    """Whether a variant changes its side's sink as the paper expects."""
    verdict = VERDICTS.get(result.outcome, "cannot show")
    return verdict, f"{result.variant.label}: {_levels(result)} ({result.reason or 'no side stated'})"


def _none_of(results: list[VariantResult]) -> Result:
    """Why no variant among these can be judged."""
    unknown = ", ".join(r.variant.label for r in results if "unknown" in r.variant.mechanisms)
    return (
        "cannot show",
        f"Mechanism unknown: {unknown}; state it in ablation.yaml." if unknown else "No such variant was run.",
    )


def _over(
    comparison: Comparison, judge: Judge, kind: Mechanism, *sides: Side, without: Mechanism | None = None
) -> Result:
    """The combined judgment of every variant of a mechanism and side."""
    on_side = [r for r in comparison.results if r.variant.side in sides and r is not comparison.baseline]
    chosen = [r for r in on_side if kind in r.variant.mechanisms and without not in r.variant.mechanisms]
    if not chosen:
        return _none_of(on_side)
    results = [judge(result) for result in chosen]
    return _combine(verdict for verdict, _ in results), "; ".join(text for _, text in results) + "."


def _rescale(comparison: Comparison) -> Result:
    """Small value norm of the first token, small gain at the sink dimension."""
    baseline = comparison.baseline
    if baseline is None:
        return "cannot show", "There is no baseline."
    limit = " Whether sinks rescale by context, these runs cannot show"
    limit += f": {AT_THIS_SCALE}." if tiny(comparison.ablation) else "."
    verdicts: list[Verdict] = []
    parts = []
    for sink, key, name in (
        (ATTENTION, "value_norm_ratio_max_head", "value norm of the first token / median, in the strongest head"),
        (RESIDUAL, "gain_at_sink", "norm gain at the sink dimension / median"),
    ):
        spread = baseline.spreads.get(key)
        if spread is None or sink not in baseline.sinks:
            continue
        small = spread.mean + spread.half_range < SMALL
        verdicts.append("supports" if small else "contradicts")
        parts.append(f"{name} {spread.mean:.2f}, {'below' if small else 'not below'} {SMALL}")
    if not parts:
        return "cannot show", "The baseline formed no sink that could be measured."
    return _combine(verdicts), f"Baseline: {'; '.join(parts)}.{limit}"


def _double_dissociation(comparison: Comparison) -> Result:
    """Each side's absorbing and gating fixes change their own sink only."""
    texts: list[str] = []
    verdicts: list[Verdict] = []
    for side, expectation in (
        ("attention", "empty the attention sink and leave R"),
        ("residual", "lower R and leave the sink"),
    ):
        fixes = [r for r in comparison.results if r.variant.side == side and r.variant.mechanisms in REPLACING]
        judged = [VERDICTS[r.outcome] for r in fixes if r.outcome in VERDICTS]
        if not judged:
            return "cannot show", f"No {side}-side fix could be judged."
        verdicts.append(_combine(judged))
        texts.append(f"{judged.count('supports')} of {len(judged)} {side}-side fixes {expectation}")
    return _combine(verdicts), "; ".join(texts) + "."


def _beyond(more: VariantResult, less: VariantResult) -> bool:
    """Whether `more` exceeds `less` in first-token mass by more than the sum of their half ranges."""
    a, b = more.spreads.get(ATTENTION), less.spreads.get(ATTENTION)
    return a is not None and b is not None and a.mean - b.mean > a.half_range + b.half_range


def _gates_together(comparison: Comparison) -> Result:
    """An attention gate and a norm gate together: both sinks should fall."""
    on_side = [r for r in comparison.results if r.variant.side == "both" and r is not comparison.baseline]
    both = [r for r in on_side if "gated" in r.variant.mechanisms and r.variant.runs]
    alone = [r for r in comparison.results if r.variant.side == "attention" and "gated" in r.variant.mechanisms]
    if not both:
        return _none_of(on_side)
    texts, verdicts = [], []
    for result in both:
        verdict, text = _takes_over(result)
        emptier = [r for r in alone if r.changes[ATTENTION] == "falls" and _beyond(result, r)]
        if emptier and verdict != "cannot show":
            names = ", ".join(f"{r.variant.label} alone reduces it to {FIRST_TOKEN.mean(r)}" for r in emptier)
            text += f". Unexpectedly, first-token mass is {FIRST_TOKEN.mean(result)} here, although {names}"
            text += "; unexplained"
            verdict = "mixed" if verdict == "supports" else verdict
        verdicts.append(verdict)
        texts.append(text)
    return _combine(verdicts), "; ".join(texts) + "."


def claims(comparison: Comparison) -> list[Claim]:
    """The paper's claims, each with a verdict based on these numbers only."""
    over = partial(_over, comparison)
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
        ("C1b", "Clipping the outliers hurts", over(_cost, "clipped", "residual", "both", "attention")),
        ("C2", "Sinks rescale more than they contribute", _rescale(comparison)),
        (
            "C3",
            "A parameter can absorb the attention sink (learnable sink)",
            over(_takes_over, "absorbed", "attention", "both", without="gated"),
        ),
        (
            "C3",
            "A parameter can absorb the residual sink (PreAffine)",
            over(_takes_over, "absorbed", "residual", "both", without="gated"),
        ),
        ("C4", "An output gate replaces the attention sink", over(_takes_over, "gated", "attention")),
        (
            "C4",
            "A norm gate replaces the residual sink (GatedNorm)",
            over(_takes_over, "gated", "residual", without="unnormalized"),
        ),
        ("C4", "Each side's fixes act on their own sink only (double dissociation)", _double_dissociation(comparison)),
        ("C4", "Both gates together replace both sinks", _gates_together(comparison)),
        ("C5", "Without outliers, quantization to few bits costs less", _quantization(comparison)),
    ]
    return [Claim(key, claim, *result) for key, claim, result in rows]


def _quantization(comparison: Comparison) -> Result:
    runs = [run for result in comparison.results for run in result.variant.runs]
    if any(results(run.folder.path, QUANTIZATION) for run in runs):
        return (
            "cannot show",
            "Simulated quantization is in its table; there is no rule for a verdict on it.",
        )
    return "cannot show", "Not measured in these runs."
