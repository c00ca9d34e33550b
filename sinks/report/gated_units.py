"""Whether GLU, whose sigmoid makes smaller outliers, is as good as SwiGLU once attention has a gate (C6)."""

from collections.abc import Mapping
from typing import Any

from sinks.record.folder import NotRecorded
from sinks.report.ablation import Variant
from sinks.report.loss import LossResult, judge_losses
from sinks.report.outcomes import Comparison, VariantResult, differences, words_of
from sinks.report.tables import with_interval
from sinks.report.verdict import Result, of_all
from sinks.stats.paired import Paired

GLU, SWIGLU = "SigmoidGLU", "SwiGLU"
PAPER = "the paper's one run each: +0.011 without a gate, -0.002 and -0.003 with one"
MISSING = (
    "No variant with GLU beside one with SwiGLU and otherwise the same configuration: rows 1, 2, 15 and 16 of "
    "experiments/ablations/table1.yaml have both, without and with a gate"
)


def feed_forward(variant: Variant) -> str | None:
    """Name of the feed-forward class of a variant's runs; None where their configuration does not state it."""
    given = _model(variant).get("feed_forward")
    return str(given["class_path"]).rsplit(".", 1)[-1] if isinstance(given, dict) and "class_path" in given else None


def _model(variant: Variant) -> Mapping[str, Any]:
    """The arguments of the model, as its first run states them."""
    try:
        model = variant.shown[0].folder.config().get("model") if variant.shown else None
    except NotRecorded:
        return {}
    given = model.get("init_args") if isinstance(model, dict) else None
    return given if isinstance(given, dict) else {}


def _but_for_the_unit(variant: Variant) -> tuple[Any, ...]:
    """Everything that the two of a pair share: the width of the feed-forward keeps the parameters equal."""
    given = dict(_model(variant))
    given.pop("feed_forward", None)
    widths = {k: v for k, v in (given.pop("architecture", None) or {}).items() if k != "ffn_hidden"}
    return given, widths


def pairs(comparison: Comparison) -> list[tuple[VariantResult, VariantResult]]:
    """Variants with GLU, each beside the one with SwiGLU that is the same otherwise."""
    with_swiglu = [r for r in comparison.results if feed_forward(r.variant) == SWIGLU]
    return [
        (glu, swiglu)
        for glu in comparison.results
        if feed_forward(glu.variant) == GLU
        for swiglu in with_swiglu
        if _but_for_the_unit(swiglu.variant) == _but_for_the_unit(glu.variant)
    ]


def verdict(comparison: Comparison) -> Result:
    """Supported if GLU costs something without a gate, and with one loses that cost (or is better than SwiGLU);
    contradicted if it is worse than SwiGLU with a gate as well."""
    found = {
        f"{glu.variant.label} against {swiglu.variant.label}": ("gate_mean" in glu.spreads, by_seed)
        for glu, swiglu in pairs(comparison)
        if (by_seed := differences(glu.variant, swiglu.variant))
    }
    gated = {name: by_seed for name, (gate, by_seed) in found.items() if gate}
    plain = {name: by_seed for name, (gate, by_seed) in found.items() if not gate}
    if not gated:
        return Result("cannot tell", f"{MISSING}; {PAPER}.")
    reference = next(iter(plain.values()), {})
    changes = {
        f"{name}, change": {seed: by_seed[seed] - reference[seed] for seed in by_seed.keys() & reference.keys()}
        for name, by_seed in gated.items()
    }
    tested = {name: Paired.of(list(by_seed.values())) for name, by_seed in (gated | plain | changes).items()}
    losses = judge_losses({name: paired for name, paired in tested.items() if paired is not None})[1]
    costs = any(losses[name].call == "higher" for name in plain)
    judged = of_all(_judge(name, losses[name], losses.get(f"{name}, change"), costs) for name in gated)
    rest = [_words(name, losses[name], "without a gate") for name in plain]
    if not plain:
        rest = ["GLU without a gate was not run, so its cost there is not known"]
    return judged._replace(text="; ".join([judged.text.removesuffix("."), *rest, PAPER]) + ".")


def _judge(name: str, loss: LossResult, change: LossResult | None, costs: bool) -> Result:
    """Of a pair with a gate.

    Args:
        name: of the pair.
        loss: GLU minus SwiGLU.
        change: of that by the gate, if there is a pair without one.
        costs: whether GLU without a gate is worse than SwiGLU.
    """
    text = _words(name, loss, "with a gate")
    if change is not None:
        text += f", {with_interval(change.difference, 4)} ({words_of(change)}) against the difference without"
    if loss.call == "higher":
        return Result("contradicted", text)
    if loss.call == "lower" or (costs and change is not None and change.call == "lower"):
        return Result("supported", text)
    return Result("no effect" if loss.call == "no effect" else "cannot tell", text, loss.visible)


def _words(name: str, loss: LossResult, where: str) -> str:
    return f"{where}, {name}: loss {with_interval(loss.difference, 4)} ({words_of(loss)})"
