"""Whether each fix does at every token what the sink did (the unifying claim), from transfer.json and the routes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sinks.report import transfer
from sinks.report.ablation import NOT_THE_PAPERS
from sinks.report.outcomes import Comparison, VariantResult
from sinks.report.routes import USED, routes
from sinks.report.verdict import Result, combine, of_all

# Of the correlation that two runs could have at most, the part from which on they do the same job.
AGREES_FROM = 0.5
# Below this, runs of one variant have so little in common that nothing can be expected of two.
LEAST_CEILING = 0.3
# The quantities of a side, the correlation of each that decides, and its name.
QUANTITIES = {"attention": ("weight",), "residual": ("scale",), "both": ("weight", "scale")}
KEYS = {"weight": "best", "scale": "same_site"}
WORDS = {"weight": "attention weight", "scale": "scale of the norm"}
ALL = "all"  # queries
MISSING = "Not measured in these runs: run sinks transfer {root}, which needs their checkpoints."


def verdict(comparison: Comparison) -> Result:
    """Of every fix: its rank correlation with the baseline, token by token, over what the seeds of each would allow.

    A correlation between two noisy series can be at most sqrt(r r'), where r and r' are those of their repetitions
    (Spearman 1904, correction for attenuation); other seeds are the repetitions here.
    """
    content, base = transfer.load(comparison.ablation.root), comparison.baseline
    if content is None:
        return Result("cannot tell", MISSING.format(root=comparison.ablation.root))
    found = [
        _judge(result, base, content, quantity)
        for result in comparison.results
        if base is not None
        and result is not base
        and not result.variant.mechanisms & {"none", "clipped", *NOT_THE_PAPERS}
        for quantity in QUANTITIES.get(result.variant.side, ())
        if _of(content, result.variant.name, "baseline", quantity, ALL)
    ]
    return of_all(found) if found else Result("cannot tell", "No fix is among the runs that were compared.")


def _of(content: Mapping[str, Any], variant: str, against: str, quantity: str, queries: str) -> list[float]:
    """Correlations over the seeds."""
    about = {"variant": variant, "against": against, "quantity": quantity, "queries": queries}
    chosen = [e for e in content["comparisons"] if all(e.get(name) == value for name, value in about.items())]
    return [float(value) for e in chosen if (value := e.get(KEYS[quantity])) is not None]


def _judge(result: VariantResult, base: VariantResult, content: Mapping[str, Any], quantity: str) -> Result:
    """Of a fix and a quantity, over the kinds of queries: within a kind, not only the switch between kinds counts."""
    names = (base.variant.name, result.variant.name)
    judged = []
    for kind in content["queries"]:
        agree = _of(content, names[1], "baseline", quantity, kind)
        if agree:
            repeated = [_of(content, name, "itself", quantity, kind) for name in names]
            judged.append(_at_queries(kind, agree, repeated))
    used = _used(result, base) if quantity == "weight" else ""
    text = f"{result.variant.label}, {WORDS[quantity]}{used}: {', '.join(each.text for each in judged)}"
    return Result(combine(judged)[0], text)


def _at_queries(kind: str, agree: Sequence[float], repeated: Sequence[Sequence[float]]) -> Result:
    text = f"{kind} {min(agree):.2f} to {max(agree):.2f}"
    if not all(repeated):
        return Result("cannot tell", f"{text} (no ceiling: it takes two seeds of both)")
    means = [sum(values) / len(values) for values in repeated]
    if min(means) < LEAST_CEILING:
        return Result("cannot tell", f"{text} (seeds agree too little: {means[0]:.2f} and {means[1]:.2f})")
    ceiling = math.sqrt(means[0] * means[1])
    low, high = min(agree) / ceiling, max(agree) / ceiling
    text += f" ({low:.2f} to {high:.2f} of the ceiling {ceiling:.2f})"
    if low >= AGREES_FROM:
        return Result("supported", text)
    return Result("contradicted" if high < AGREES_FROM else "cannot tell", text)


def _used(result: VariantResult, base: VariantResult) -> str:
    """The mean effective weight at the head of the baseline's sink, with and without the fix."""
    before, after = (routes(each.variant.runs, base.variant.runs).get(USED) for each in (base, result))
    if before is None or after is None:
        return ""
    return f" ({after.mean:.2f} of it used, the baseline {before.mean:.2f})"
