"""What a report opens with: the question, and a few sentences that answer it from these runs."""

from collections.abc import Iterable

from sinks.report import disagreements
from sinks.report.claims import Claim
from sinks.report.outcomes import ATTENTION, LOSS, MEASURES, RESIDUAL, SINK_FROM, Comparison, VariantResult
from sinks.report.spread import MATERIAL, Spread

NAMES = {ATTENTION: "attention sink", RESIDUAL: "residual sink"}
NAMED = 6  # variants that a sentence names; of more it gives the number


def question(comparison: Comparison) -> str:
    """What the ablation asks; where its file states nothing, what every ablation does."""
    asked = comparison.ablation.question
    others = len(comparison.results) - (comparison.baseline is not None)
    return asked or f"What do {others} variants change in the attention sink, the residual sink and the loss?"


def answer(comparison: Comparison, claims: Iterable[Claim]) -> list[str]:
    """Sentences: the baseline's sinks, which variants lower them, what happens to the loss, and what is against the
    paper."""
    found = [_baseline(comparison), *(_fallen(comparison, key) for key in NAMES), _losses(comparison)]
    known, rows = against(comparison, claims), disagreements.sentences(comparison)
    return [sentence for sentence in [*found, known, *rows, reach(comparison) if known or rows else ""] if sentence]


def against(comparison: Comparison, claims: Iterable[Claim]) -> str:
    """The claims and the expectations of the paper that do not hold; empty if there is none."""
    contradicted = [f"{claim.key} ({claim.claim.rstrip('.')})" for claim in claims if claim.verdict == "contradicted"]
    contrary = [f"{r.variant.short} ({r.reason})" for r in comparison.results if r.outcome == "contrary"]
    contrary += [f"{r.variant.short} ({words}, one seed)" for r in comparison.results if (words := _other_way(r))]
    parts = [f"{what} {_list(found)}" for what, found in (("claims", contradicted), ("variants", contrary)) if found]
    return f"Against the paper: {'; '.join(parts)}." if parts else ""


def reach(comparison: Comparison) -> str:
    """How far a disagreement goes."""
    runs = comparison.ablation.runs
    sizes = sorted({int(n) for run in runs if (n := run.value("parameters")) is not None})
    tokens = sorted({int(n) for run in runs if (n := run.value("tokens")) is not None})
    size = f" of {sizes[-1] / 1e6:.3g} M parameters" if sizes else ""
    length = f" on {tokens[-1] / 1e6:.3g} M tokens" if tokens else ""
    return f"This holds for models{size}{length}, and says nothing of larger ones."


def _other_way(result: VariantResult) -> str:
    """Measures of a single seed that rise by more than `MATERIAL` where the paper expects a fall."""
    base = result.baseline
    if base is None or result.no_effect:
        return ""
    rise = [
        f"{MEASURES[key]} rises from {_value(base.spreads[key])} to {_value(result.spreads[key])}"
        for key in NAMES
        if result.expected.get(key) == "falls"
        and result.changes.get(key) == "one seed"
        and result.spreads[key].mean > (1 + MATERIAL) * base.spreads[key].mean
    ]
    return ", ".join(rise)


def _baseline(comparison: Comparison) -> str:
    base = comparison.baseline
    if base is None:
        return "There is no finished run of the baseline, so nothing is compared."
    known = [
        f"{'an' if key == ATTENTION else 'a'} {name} ({MEASURES[key]} {_value(base.spreads[key])})"
        for key, name in NAMES.items()
        if key in base.spreads and base.spreads[key].mean >= SINK_FROM[key]
    ]
    return f"The baseline has {_list(known)}." if known else ""


def _fallen(comparison: Comparison, key: str) -> str:
    base = comparison.baseline
    if base is None or key not in base.sinks:
        return ""
    falls = [r for r in comparison.results if str(r.changes.get(key, "")).startswith("falls") and not r.no_effect]
    if not falls:
        one_seed = any(r.changes.get(key) == "one seed" for r in comparison.results)
        return "" if one_seed else f"The {NAMES[key]} falls in no variant."
    by_value = sorted(falls, key=lambda r: r.spreads[key].mean)
    little = {r.variant.name: ", a little" * str(r.changes[key]).endswith("a little") for r in falls}
    named = (f"{r.variant.short} ({_value(r.spreads[key])}{little[r.variant.name]})" for r in by_value)
    return f"The {NAMES[key]} falls with {_list(named)}."


def _losses(comparison: Comparison) -> str:
    def of(call: str) -> list[VariantResult]:
        return [r for r in comparison.results if r.changes.get(LOSS) == call and r.loss]

    parts = [
        f"is {call} with {_list(f'{r.variant.short} ({r.loss.difference.mean:+.3f})' for r in of(call) if r.loss)}"
        for call in ("lower", "higher")
        if of(call)
    ]
    untold = len(of("cannot tell"))
    if untold:
        others = "other " * bool(parts)
        parts.append(f"cannot be told from the baseline's in {untold} {others}variant{'s' * (untold != 1)}")
    return f"The loss {', '.join(parts)}." if parts else ""


def _value(spread: Spread) -> str:
    return f"{spread.mean:.3g}"


def _list(items: Iterable[str]) -> str:
    """`a, b and c`, or `a, x; b, y; and c` where names have commas; what is beyond `NAMED` is counted."""
    known = list(items)
    more = len(known) - NAMED
    shown = known[:NAMED] + ([f"{more} more"] if more > 0 else [])
    if len(shown) == 1:
        return shown[0]
    apart, last = ("; ", "; and ") if any(", " in item for item in shown) else (", ", " and ")
    return f"{apart.join(shown[:-1])}{last}{shown[-1]}"
