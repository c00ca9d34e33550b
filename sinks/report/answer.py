"""What a report opens with: the question, and a few sentences that answer it from these runs."""

from collections.abc import Iterable

from sinks.report import disagreements, factorial, sweep
from sinks.report.claims import Claim
from sinks.report.outcomes import ATTENTION, LOSS, MEASURES, SINK_FROM, Comparison, VariantResult
from sinks.report.wording import NAMES, listed, short


def question(comparison: Comparison) -> str:
    """What the ablation asks; where its file states nothing, what every ablation does."""
    asked = comparison.ablation.question
    others = len(comparison.results) - (comparison.baseline is not None)
    verb, variants = ("does", "one variant") if others == 1 else ("do", f"{others} variants")
    return asked or f"What {verb} {variants} change in the attention sink, the residual sink and the loss?"


def answer(comparison: Comparison, claims: Iterable[Claim]) -> list[str]:
    """Sentences: the baseline's sinks, which variants lower them, what happens to the loss, which effects do not add
    up, and what is against the paper."""
    fallen = [_fallen(comparison, key) for key in NAMES]
    found = [_baseline(comparison), *fallen, _losses(comparison), sweep.sentence(comparison)]
    found += [factorial.sentence(comparison.ablation)]
    return [*filter(None, found), *disagreements.sentences(comparison, claims)]


def _baseline(comparison: Comparison) -> str:
    base = comparison.baseline
    if base is None:
        return "There is no finished run of the baseline, so nothing is compared."
    known = [
        f"{'an' if key == ATTENTION else 'a'} {name} ({MEASURES[key]} {short(base.spreads[key])})"
        for key, name in NAMES.items()
        if key in base.spreads and base.spreads[key].mean >= SINK_FROM[key]
    ]
    return f"The baseline has {listed(known)}." if known else ""


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
    named = (f"{r.variant.short} ({short(r.spreads[key])}{little[r.variant.name]})" for r in by_value)
    return f"The {NAMES[key]} falls with {listed(named)}."


def _losses(comparison: Comparison) -> str:
    def of(call: str) -> list[VariantResult]:
        return [r for r in comparison.results if r.changes.get(LOSS) == call and r.loss]

    parts = [
        f"is {call} with {listed(f'{r.variant.short} ({r.loss.difference.mean:+.3f})' for r in of(call) if r.loss)}"
        for call in ("lower", "higher")
        if of(call)
    ]
    untold = len(of("cannot tell"))
    if untold:
        others = "other " * bool(parts)
        parts.append(f"cannot be told from the baseline's in {untold} {others}variant{'s' * (untold != 1)}")
    return f"The loss {', '.join(parts)}." if parts else ""
