"""The outcome of each variant, computed once by the rules printed in rules.j2; everything else renders it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from sinks.report.ablation import NOT_THE_PAPERS, Ablation, Side, Variant
from sinks.report.loss import LossCall, LossResult, Noise, judge_losses
from sinks.report.measured import masked_change
from sinks.report.spread import Move, Spread, move
from sinks.stats.paired import Paired

ATTENTION = "first_token_mass_max_head"
RESIDUAL = "residual_sink_score"
LOSS = "val_loss"
SAME = ("steps", "data_fingerprint")  # of runs whose losses are compared
MASKED = "first_token_masked"  # of `sinks probe`, beside the keys of summary.json
MEASURES = {ATTENTION: "first-token mass", RESIDUAL: "R", LOSS: "loss"}
# A mean of at least this much counts as a sink.
SINK_FROM = {ATTENTION: 0.1, RESIDUAL: 3.0}

Outcome = Literal["as the paper expects", "in part", "contrary", "not shown", "no effect", ""]
Change = Move | LossCall | Literal["no sink", "not measured"]
Expectation = Mapping[str, Change]

FIX: dict[Side, Expectation] = {
    "attention": {ATTENTION: "falls", RESIDUAL: "stays"},
    "residual": {ATTENTION: "stays", RESIDUAL: "falls"},
    "both": {ATTENTION: "falls", RESIDUAL: "falls"},
}
# The paper expects a residual that is clipped or has no normalizer to hurt.
HARM: Expectation = {RESIDUAL: "falls", LOSS: "higher"}


@dataclass(frozen=True)
class VariantResult:
    """What the report states about one variant.

    Args:
        variant: its runs and description.
        baseline: what it is compared with; None for the baseline itself, or if none is available.
        spreads: summary key, or `MASKED` -> spread over the seeds that did not diverge.
        loss: what its loss differences to the baseline's runs of the same seed, data and steps show.
        changes: how each of `MEASURES` differs from the baseline.
        expected: the changes that the paper expects; empty if it expects none.
        outcome: the verdict.
        reason: the reason for it.
    """

    variant: Variant
    baseline: "VariantResult | None" = None
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    loss: LossResult | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    expected: Expectation = field(default_factory=dict)
    outcome: Outcome = ""
    reason: str = ""

    @property
    def no_effect(self) -> bool:
        """Whether it equals the baseline: a clip that clips nothing and costs nothing to see, or losses equal to the
        last digit."""
        clipped, call = self.spreads.get("clipped_share"), self.changes.get(LOSS)
        # In training it may have clipped; and one massive activation of a row is a small fraction of its values.
        unclipped = clipped is not None and clipped.high == 0 and call not in ("higher", "lower")
        return unclipped or call == "no effect"

    @property
    def sinks(self) -> frozenset[str]:
        """The measures of `SINK_FROM` that show a sink here."""
        return frozenset(k for k, least in SINK_FROM.items() if k in self.spreads and self.spreads[k].mean >= least)

    @property
    def seeds(self) -> int:
        """The smaller number of seeds of the two compared; 0 without a baseline."""
        return min(len(self.variant.runs), len(self.baseline.variant.runs)) if self.baseline else 0


class Rule(NamedTuple):
    """The first rule that applies decides the outcome."""

    outcome: Outcome
    reason: str
    applies: Callable[[VariantResult], bool]


RULES = (
    Rule("", "", lambda r: not r.expected),
    Rule("not shown", "unfinished", lambda r: not r.variant.runs and not r.variant.diverged),
    Rule("as the paper expects", "every run diverged", lambda r: not r.variant.runs and LOSS in r.expected),
    Rule("not shown", "every run diverged", lambda r: not r.variant.runs),
    Rule("no effect", "the intervention changed nothing", lambda r: r.no_effect),
    Rule("not shown", "no baseline", lambda r: r.baseline is None),
    Rule("not shown", "one seed has no spread", lambda r: r.seeds < 2),
    # On the attention side every mechanism is a fix; elsewhere the expectation depends on it.
    Rule(
        "not shown", "mechanism unknown", lambda r: "unknown" in r.variant.mechanisms and r.variant.side != "attention"
    ),
)
# If no rule applies, every expected measure gets a mark and the worst mark decides; worst first.
Mark = Literal["elsewhere", "unclear", "a little", "as expected"]
OUTCOME_BY_MARK: dict[Mark, Outcome] = {
    "elsewhere": "contrary",
    "unclear": "not shown",
    "a little": "in part",
    "as expected": "as the paper expects",
}
NO_ANSWER = ("unclear", "cannot tell", "one seed", "no sink", "not measured")
WORDS: dict[Change, str] = {"one seed": "{} unclear", "no sink": "no {} to lose"}


def mark(found: Change, expected: Change) -> Mark:
    """How well a change matches the expected one: a small change counts as staying, and as part of a fall."""
    if found == expected or (expected == "stays" and found.endswith("a little")):
        return "as expected"
    if found == f"{expected} a little":
        return "a little"
    return "unclear" if found in NO_ANSWER else "elsewhere"


def judge(result: VariantResult) -> tuple[Outcome, str]:
    """The verdict on a variant, and why."""
    for rule in RULES:
        if rule.applies(result):
            return rule.outcome, rule.reason
    marks = {key: mark(result.changes[key], expected) for key, expected in result.expected.items()}
    worst = next(found for found in OUTCOME_BY_MARK if found in marks.values())
    named = [key for key in marks if marks[key] == worst or worst in ("a little", "as expected")]
    return OUTCOME_BY_MARK[worst], ", ".join(_words(result, key) for key in named)


def _words(result: VariantResult, key: str) -> str:
    change = result.changes[key]
    if change == "cannot tell":
        return cannot_tell(result)
    return WORDS.get(change, f"{{}} {change}").format(MEASURES[key])


def cannot_tell(result: VariantResult) -> str:
    """Which differences of the loss the seeds of a variant cannot tell from none."""
    assert result.loss is not None
    return f"loss: {words_of(result.loss)}"


def words_of(loss: LossResult) -> str:
    """What a paired difference tells, in words."""
    return f"cannot tell below {loss.visible:.2g}" if loss.call == "cannot tell" else loss.call


@dataclass(frozen=True)
class Comparison:
    """An ablation with the result of each variant.

    Args:
        ablation: the runs.
        results: one per variant, in row order.
        baseline: the result of the baseline, if there is one.
        noise: of paired loss differences; None without two seeds of the baseline and of another variant.
    """

    ablation: Ablation
    results: list[VariantResult]
    baseline: VariantResult | None
    noise: Noise | None = None


def compare(ablation: Ablation) -> Comparison:
    """Compare every variant with the baseline, or with the variant that it names."""
    named = {variant.name: variant for variant in ablation.variants}
    against = {v.name: named.get(v.against) if v.against else ablation.baseline for v in ablation.variants}
    pairs = {n: other for n, other in against.items() if other is not None and other is not named[n] and other.runs}
    references = {other.name: _result(other, {}, None, None) for other in (*pairs.values(), ablation.baseline) if other}
    noise, losses = judge_losses({n: found for n, other in pairs.items() if (found := paired(named[n], other))})
    results = [
        _result(variant, expectation(variant), references[pairs[name].name], losses.get(name))
        if name in pairs
        else references.get(name) or _result(variant, expectation(variant), None, None)
        for name, variant in named.items()
    ]
    baseline = references[ablation.baseline.name] if ablation.baseline else None
    return Comparison(ablation, results, baseline, noise)


def expectation(variant: Variant) -> Expectation:
    """The changes that the paper expects; clipping the residual or removing its normalizer should hurt."""
    if variant.mechanisms & NOT_THE_PAPERS:
        return {}
    harms = variant.mechanisms & {"clipped", "unnormalized"} and "gated" not in variant.mechanisms
    return HARM if harms and variant.side in ("residual", "both") else FIX.get(variant.side, {})


def _result(
    variant: Variant, expected: Expectation, baseline: VariantResult | None, loss: LossResult | None
) -> VariantResult:
    keys = sorted({key for run in variant.runs for key in run.summary})
    spreads = {key: found for key in keys if (found := Spread.of(run.value(key) for run in variant.runs))}
    if masked := Spread.of(masked_change(run.folder.path) for run in variant.runs):
        spreads[MASKED] = masked
    base = baseline.spreads if baseline else {}
    changes: dict[str, Change] = {key: _sink_change(key, base.get(key), spreads.get(key)) for key in SINK_FROM}
    measured: Change = "one seed" if LOSS in spreads or not variant.runs else "not measured"
    changes[LOSS] = loss.call if loss else measured
    result = VariantResult(variant, baseline, spreads, loss, changes, expected)
    outcome, reason = judge(result)
    return replace(result, outcome=outcome, reason=reason)


def _sink_change(key: str, baseline: Spread | None, variant: Spread | None) -> Change:
    if baseline is None or variant is None:
        return "not measured"
    if baseline.mean < SINK_FROM[key]:
        return "no sink"
    return "one seed" if min(baseline.n, variant.n) < 2 else move(baseline, variant)


def paired(variant: Variant, baseline: Variant) -> Paired | None:
    """Loss minus that of the baseline's run of the same seed, data and steps, over the seeds."""
    return Paired.of(list(differences(variant, baseline).values()))


def differences(variant: Variant, baseline: Variant) -> dict[int, float]:
    """Loss minus that of the baseline's run of the same seed, data and steps, by seed."""
    partners = {run.seed: run for run in baseline.runs}
    return {
        run.seed: loss - reference
        for run in variant.runs
        if run.seed is not None
        and (partner := partners.get(run.seed))
        and (loss := run.value(LOSS)) is not None
        and (reference := partner.value(LOSS)) is not None
        and all(run.summary.get(key) == partner.summary.get(key) for key in SAME)
    }


def no_sink(comparison: Comparison) -> str | None:
    """The alert for a baseline in which a sink did not form."""
    baseline = comparison.baseline
    names = {ATTENTION: "attention sink (first-token mass {:.2f})", RESIDUAL: "residual sink (R {:.1f})"}
    lacking = [
        name.format(baseline.spreads[key].mean)
        for key, name in names.items()
        if baseline is not None and key in baseline.spreads and key not in baseline.sinks
    ]
    if not lacking:
        return None
    return (
        f"No {' and no '.join(lacking)} formed in the baseline, so these runs show nothing about fixes for it. "
        "Sinks grow with the number of steps."
    )
