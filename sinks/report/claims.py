"""The paper's claims against the numbers at hand: supports, contradicts, or cannot show."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sinks.report.ablation import Ablation, Mechanism, Side, Variant
from sinks.report.outcomes import ATTENTION, RESIDUAL, Outcome, formed, loss_change, moves, outcome

Verdict = Literal["supports", "contradicts", "mixed", "cannot show"]
Result = tuple[Verdict, str]

SMALL = 0.5
TINY = 1e7
# Sinks handed over to parameters or gates, with the normaliser kept and nothing clipped.
REPLACING: tuple[frozenset[Mechanism], ...] = (
    frozenset({"absorbed"}),
    frozenset({"gated"}),
    frozenset({"absorbed", "gated"}),
)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, against the numbers at hand."""

    key: str
    claim: str
    verdict: Verdict
    evidence: str


def tiny(ablation: Ablation) -> bool:
    """Whether the models are so small that probes found a constant in the sink dimension (scratch runs, 0.4 M)."""
    parameters = [value for run in ablation.runs if (value := run.value("parameters")) is not None]
    return not parameters or max(parameters) < TINY


def _number(variant: Variant, key: str, digits: int) -> str:
    spread = variant.spread(key)
    return "-" if spread is None else f"{spread.mean:.{digits}f}"


def _levels(variant: Variant) -> str:
    return f"first-token mass {_number(variant, ATTENTION, 2)}, R {_number(variant, RESIDUAL, 1)}"


def _sum_up(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of many: "mixed" if they disagree; those that cannot show do not count."""
    known = {verdict for verdict in verdicts if verdict != "cannot show"}
    if not known:
        return "cannot show"
    return known.pop() if len(known) == 1 else "mixed"


def _cost(ablation: Ablation, variant: Variant) -> Result:
    """Whether a variant hurts: a higher loss, or divergence."""
    if not variant.runs:
        if variant.diverged:
            return "supports", f"{variant.label} diverged ({len(variant.diverged)} of {len(variant.diverged)} runs)"
        return "cannot show", f"{variant.label} is unfinished"
    if variant.no_effect:
        return "cannot show", f"{variant.label} clipped nothing"
    difference = ablation.paired(variant)
    if difference is None:
        return "cannot show", f"{variant.label} has no paired baseline"
    call = loss_change(ablation, variant)
    some = f", {len(variant.diverged)} more diverged" if variant.diverged else ""
    text = f"{variant.label}: loss {difference.mean:+.3f} ({call}{some}), {_levels(variant)}"
    if variant.diverged or call == "higher":
        return "supports", text
    return ("cannot show" if call == "one seed" else "contradicts"), text


def _takes_over(ablation: Ablation, variant: Variant) -> Result:
    """Whether a variant does to its side's sink what the paper expects."""
    result, why = outcome(ablation, variant)
    verdicts: dict[Outcome, Verdict] = {
        "as the paper expects": "supports",
        "in part": "mixed",
        "contrary": "contradicts",
    }
    return verdicts.get(result, "cannot show"), f"{variant.label}: {_levels(variant)} ({why or 'no side stated'})"


def _over(
    ablation: Ablation,
    kind: Mechanism,
    sides: tuple[Side, ...],
    judge: Callable[[Ablation, Variant], Result],
    without: frozenset[Mechanism] = frozenset(),
) -> Result:
    """A judgement of every variant of a mechanism and side, summed up."""
    chosen = [
        variant
        for variant in ablation.variants
        if kind in variant.mechanisms
        and variant.side in sides
        and not variant.mechanisms & without
        and variant is not ablation.baseline
    ]
    if not chosen:
        return "cannot show", "No such variant was run."
    results = [judge(ablation, variant) for variant in chosen]
    return _sum_up(verdict for verdict, _ in results), "; ".join(text for _, text in results) + "."


def _rescale(ablation: Ablation) -> Result:
    """Small value norm of the first token, small gain at the sink dimension."""
    baseline = ablation.baseline
    if baseline is None:
        return "cannot show", "There is no baseline."
    limit = " Whether sinks rescale by context, these runs cannot show"
    limit += ": at this scale the sink dimension is mostly a constant bias channel." if tiny(ablation) else "."
    verdicts: list[Verdict] = []
    parts = []
    for sink, key, name in (
        (ATTENTION, "value_norm_ratio_max_head", "value norm of the first token / median, in the strongest head"),
        (RESIDUAL, "gain_at_sink", "norm gain at the sink dimension / median"),
    ):
        spread = baseline.spread(key)
        if spread is None or not formed(ablation, sink):
            continue
        small = spread.mean + spread.half_range < SMALL
        verdicts.append("supports" if small else "contradicts")
        parts.append(f"{name} {spread.mean:.2f}, {'below' if small else 'not below'} {SMALL}")
    if not parts:
        return "cannot show", "The baseline formed no sink that could be measured."
    return _sum_up(verdicts), f"Baseline: {'; '.join(parts)}.{limit}"


def _double_dissociation(ablation: Ablation) -> Result:
    """Each side's absorbing and gating fixes move their own sink and leave the other."""
    texts: list[str] = []
    verdicts: list[Verdict] = []
    for side in ("attention", "residual"):
        judged = [
            outcome(ablation, variant)[0]
            for variant in ablation.variants
            if variant.side == side and variant.mechanisms in REPLACING
        ]
        as_expected = judged.count("as the paper expects")
        other = judged.count("in part") + judged.count("contrary")
        if as_expected + other == 0:
            return "cannot show", f"No {side}-side fix could be judged."
        verdicts.append(
            "mixed" if "in part" in judged or (as_expected and other) else "contradicts" if other else "supports"
        )
        expectation = "empty the attention sink and leave R" if side == "attention" else "lower R and leave the sink"
        texts.append(f"{as_expected} of {as_expected + other} {side}-side fixes {expectation}")
    return _sum_up(verdicts), "; ".join(texts) + "."


def _beyond(more: Variant, less: Variant) -> bool:
    """Whether one variant keeps more first-token mass than another, by more than both half ranges together."""
    a, b = more.spread(ATTENTION), less.spread(ATTENTION)
    return a is not None and b is not None and a.mean - b.mean > a.half_range + b.half_range


def _gates_together(ablation: Ablation) -> Result:
    """An attention gate and a norm gate at once: both sinks should fall."""
    both = [v for v in ablation.variants if v.side == "both" and "gated" in v.mechanisms and v.runs]
    alone = [v for v in ablation.variants if v.side == "attention" and "gated" in v.mechanisms and v.runs]
    if not both:
        return "cannot show", "No such variant was run."
    texts, verdicts = [], []
    for variant in both:
        verdict, text = _takes_over(ablation, variant)
        emptier = [v for v in alone if moves(ablation, v)[ATTENTION] == "falls" and _beyond(variant, v)]
        if emptier and verdict != "cannot show":
            names = ", ".join(f"{v.label} alone brings it to {_number(v, ATTENTION, 2)}" for v in emptier)
            text += f". A surprise: first-token mass is {_number(variant, ATTENTION, 2)} here, although {names}"
            text += "; unexplained"
            verdict = "mixed" if verdict == "supports" else verdict
        verdicts.append(verdict)
        texts.append(text)
    return _sum_up(verdicts), "; ".join(texts) + "."


def claims(ablation: Ablation) -> list[Claim]:
    """The paper's claims, each with a verdict on these numbers alone."""
    residual: tuple[Side, ...] = ("residual", "both")
    attention: tuple[Side, ...] = ("attention", "both")
    rows: list[tuple[str, str, Result]] = [
        (
            "C1",
            "Without the residual's normaliser the model is worse (RMSNorm replaced by a pointwise function)",
            _over(ablation, "unnormalised", ("residual",), _cost),
        ),
        (
            "C1",
            "Without the attention's normaliser the model is worse (softmax replaced)",
            _over(ablation, "unnormalised", ("attention",), _cost),
        ),
        ("C1b", "Clipping the outliers hurts", _over(ablation, "clipped", ("residual", "both", "attention"), _cost)),
        ("C2", "Sinks rescale more than they contribute", _rescale(ablation)),
        (
            "C3",
            "A parameter can absorb the attention sink (learnable sink)",
            _over(ablation, "absorbed", attention, _takes_over, without=frozenset({"gated"})),
        ),
        (
            "C3",
            "A parameter can absorb the residual sink (PreAffine)",
            _over(ablation, "absorbed", residual, _takes_over, without=frozenset({"gated"})),
        ),
        ("C4", "An output gate replaces the attention sink", _over(ablation, "gated", ("attention",), _takes_over)),
        (
            "C4",
            "A norm gate replaces the residual sink (GatedNorm)",
            _over(ablation, "gated", ("residual",), _takes_over, without=frozenset({"unnormalised"})),
        ),
        ("C4", "Each side's fixes act on their own sink only (double dissociation)", _double_dissociation(ablation)),
        ("C4", "Both gates together replace both sinks", _gates_together(ablation)),
        ("C5", "Without outliers, quantisation to few bits costs less", ("cannot show", "Not measured in these runs.")),
    ]
    return [Claim(key, claim, *result) for key, claim, result in rows]
