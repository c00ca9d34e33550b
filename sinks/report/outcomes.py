"""What the numbers say of the paper's expectation of each variant, by rules that the report prints."""

from typing import Literal

from sinks.report.ablation import Ablation, Side, Variant
from sinks.report.spread import MATERIAL, LossCall, Move, agrees, loss_call, move

ATTENTION = "first_token_mass_max_head"
RESIDUAL = "residual_sink_score"
ATTENTION_SINK_FROM = 0.1
RESIDUAL_SINK_FROM = 3.0

Outcome = Literal["as the paper expects", "in part", "contrary", "not shown", ""]

LOSS = "val_loss"
MEASURES = {ATTENTION: "first-token mass", RESIDUAL: "R", LOSS: "loss"}
EXPECTED: dict[Side, dict[str, Move | LossCall]] = {
    "attention": {ATTENTION: "falls", RESIDUAL: "stays"},
    "residual": {ATTENTION: "stays", RESIDUAL: "falls"},
    "both": {ATTENTION: "falls", RESIDUAL: "falls"},
}
# A residual without its normaliser, or clipped: the paper expects these to hurt.
EXPECTED_TO_HURT: dict[str, Move | LossCall] = {RESIDUAL: "falls", LOSS: "higher"}
RULES = [
    "A measure *falls* or *rises* when its mean moves by more than the half ranges of both variants together, and "
    f"does so *a little* when that is no more than {MATERIAL:.0%} of the baseline's mean. Inside the half ranges it "
    "*stays*, or is unclear if it is more than that share.",
    "A fix on the attention side is *as the paper expects* when first-token mass falls and R stays; on the residual "
    "side when R falls and first-token mass stays; on both sides when both fall. A little counts as staying where that "
    "is expected; where a fall is expected it makes the verdict *in part*. A clip of the residual, or a residual "
    "without its normaliser, is no fix: it is as the paper expects when R falls and the loss is higher, or when every "
    "run diverges. One measure that goes elsewhere makes it *contrary*. Unclear measures, a single seed, a baseline "
    "without that sink, or a clip that clips nothing leave it *not shown*.",
    "A loss difference is *within noise* when the paired differences have both signs, or their mean is no larger than "
    "the larger half range of the two variants.",
    f"A sink formed when the baseline's strongest head gives the first token at least {ATTENTION_SINK_FROM} of its "
    f"attention (attention sink), or R is at least {RESIDUAL_SINK_FROM:.0f} (residual sink).",
]


def formed(ablation: Ablation, key: str) -> bool:
    """Whether the baseline has the sink that a measure stands for."""
    spread = ablation.baseline.spread(key) if ablation.baseline else None
    return spread is not None and spread.mean >= {ATTENTION: ATTENTION_SINK_FROM, RESIDUAL: RESIDUAL_SINK_FROM}[key]


def no_sink(ablation: Ablation) -> str | None:
    """The sentence for a baseline in which a sink did not form."""
    baseline = ablation.baseline
    if baseline is None:
        return None
    lacking = []
    for key, name in ((ATTENTION, "attention sink (first-token mass {:.2f})"), (RESIDUAL, "residual sink (R {:.1f})")):
        spread = baseline.spread(key)
        if spread is not None and not formed(ablation, key):
            lacking.append(name.format(spread.mean))
    if not lacking:
        return None
    return (
        f"No {' and no '.join(lacking)} formed in the baseline, so these runs show nothing about fixes for it. "
        "Sinks in natural text need more tokens: by the literature at least 1 to 2 billion, and a model of 60 million "
        "parameters or more."
    )


def hurts(variant: Variant) -> bool:
    """Whether the paper expects a variant to do harm rather than to replace a sink."""
    kinds = variant.mechanisms
    return variant.side in ("residual", "both") and bool(kinds & {"clipped", "unnormalised"}) and "gated" not in kinds


def moves(ablation: Ablation, variant: Variant) -> dict[str, Move]:
    """Where first-token mass and R go; "unclear" without two seeds on both sides or without a sink to begin with."""
    found: dict[str, Move] = {}
    for key in (ATTENTION, RESIDUAL):
        base = ablation.baseline.spread(key) if ablation.baseline else None
        ours = variant.spread(key)
        if base is None or ours is None or min(base.n, ours.n) < 2 or not formed(ablation, key):
            found[key] = "unclear"
        else:
            found[key] = move(base, ours)
    return found


def loss_change(ablation: Ablation, variant: Variant) -> LossCall:
    """What the paired loss difference is called; "one seed" also where there is no pair."""
    difference = ablation.paired(variant)
    base = ablation.baseline.spread(LOSS) if ablation.baseline else None
    ours = variant.spread(LOSS)
    return loss_call(difference, base, ours) if difference and base and ours else "one seed"


def outcome(ablation: Ablation, variant: Variant) -> tuple[Outcome, str]:
    """The verdict on one variant, and why."""
    if variant.side not in EXPECTED or variant is ablation.baseline:
        return "", ""
    if not variant.runs:
        if not variant.diverged:
            return "not shown", "unfinished"
        return ("as the paper expects" if hurts(variant) else "not shown"), "every run diverged"
    if variant.no_effect:
        return "not shown", "nothing was clipped"
    if ablation.baseline is None:
        return "not shown", "no baseline"
    if min(len(variant.runs), len(ablation.baseline.runs)) < 2:
        return "not shown", "one seed has no spread"
    found: dict[str, Move | LossCall] = {**moves(ablation, variant), LOSS: loss_change(ablation, variant)}
    expected = EXPECTED_TO_HURT if hurts(variant) else EXPECTED[variant.side]
    right = {k: agrees(found[k], expected[k]) for k in expected}
    wrong = [f"{MEASURES[k]} {found[k]}" for k in expected if not right[k] and found[k] not in ("unclear", "one seed")]
    if wrong:
        return "contrary", ", ".join(wrong)
    unclear = [k for k in expected if not right[k]]
    if unclear:
        known = [k == LOSS or formed(ablation, k) for k in unclear]
        texts = [
            f"{MEASURES[k]} unclear" if f else f"no {MEASURES[k]} to lose" for k, f in zip(unclear, known, strict=True)
        ]
        return "not shown", ", ".join(texts)
    result: Outcome = (
        "as the paper expects"
        if all(found[k] == expected[k] or expected[k] == "stays" for k in expected)
        else "in part"
    )
    return result, ", ".join(f"{MEASURES[k]} {found[k]}" for k in expected)
