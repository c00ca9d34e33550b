"""Whether 4-bit weights and activations cost less without outliers (C7), from what `sinks quantize` left in runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from sinks.report.ablation import NOT_THE_PAPERS, Mechanism, Run, Variant
from sinks.report.causes import scheme
from sinks.report.gated_units import feed_forward
from sinks.report.loss import LossCall, LossResult, judge_losses
from sinks.report.measured import QUANTIZATION, results
from sinks.report.outcomes import Comparison, VariantResult, words_of
from sinks.report.spread import Spread
from sinks.report.tables import with_interval, with_range
from sinks.report.verdict import Result, Verdict, combine, of_all
from sinks.stats.paired import Paired

SCHEMES = ("nvfp4", "int4")  # of 4 bits on both sides: the paper's, and the one that outliers cost most
SAME_ROWS = ("rows_sha256", "calibration_sha256")
# What the paper expects of the cost, and its points of benchmarks lost.
EXPECTED: dict[Mechanism, LossCall] = {"gated": "lower", "absorbed": "higher"}
PAPER: dict[Mechanism, str] = {
    "gated": "the paper's points lost with NVFP4, one run each: 1.36 with GatedNorm, 1.82 with output gates alone",
    "absorbed": "the paper's points lost with NVFP4, one run each: 3.15 with PreAffine, 1.82 with output gates alone",
}
MISSING = (
    "Not measured in these runs: run sinks quantize {root} --scheme nvfp4 --scheme int4 --transform none "
    "--transform smooth --breakdown false, which needs their checkpoints"
)


def verdict(comparison: Comparison, mechanism: Mechanism) -> Result:
    """Whether variants of the residual side lose as much more or less than their reference as the paper expects.

    The reference is the output gate alone for a variant with both gates, as in the paper, else the variant's baseline.

    Args:
        comparison: of the ablation.
        mechanism: gated, of which the paper expects a smaller loss, or absorbed, of which it expects a larger one.
    """
    chosen = [
        (result, reference)
        for result in comparison.results
        if result.variant.side in ("residual", "both")
        and mechanism in result.variant.mechanisms
        and not result.variant.mechanisms & {"unnormalized", "clipped", *NOT_THE_PAPERS}
        and not (mechanism == "gated" and "absorbed" in result.variant.mechanisms)
        and (reference := _reference(comparison, result)) is not None
    ]
    if not chosen:
        return Result("cannot tell", f"No such variant was run; {PAPER[mechanism]}.")
    rises = [(result.variant, reference, _paired(result.variant, reference)) for result, reference in chosen]
    tested = {f"{variant.name}, {name}": found for variant, _, schemes in rises for name, found in schemes.items()}
    if not tested:
        missing = MISSING.format(root=comparison.ablation.root)
        return Result("cannot tell", f"{missing}; {PAPER[mechanism]}.")
    losses = judge_losses(tested)[1]
    judged = [
        _judge(variant, reference, {name: losses[f"{variant.name}, {name}"] for name in by_scheme}, mechanism)
        for variant, reference, by_scheme in rises
        if by_scheme
    ]
    whole = of_all(judged)
    return whole._replace(text=f"{whole.text.removesuffix('.')}; {PAPER[mechanism]}.")


def _reference(comparison: Comparison, result: VariantResult) -> Variant | None:
    if result.variant.side == "both":
        for other in comparison.results:
            alone = other.variant.side == "attention" and other.variant.mechanisms == {"gated"}
            if alone and other.variant.runs and feed_forward(other.variant) == feed_forward(result.variant):
                return other.variant
    return result.baseline.variant if result.baseline else None


def _paired(variant: Variant, reference: Variant) -> dict[str, Paired]:
    """By scheme, how much more the variant's loss rises than the reference's of the same seed, on the same rows."""
    partners = {run.seed: dict(_costs(run)) for run in reference.runs}
    found: dict[str, list[float]] = {}
    for run in (run for run in variant.runs if run.seed is not None):
        for name, content in _costs(run):
            partner = partners.get(run.seed, {}).get(name)
            if partner is not None and all(content.get(key) == partner.get(key) for key in SAME_ROWS):
                found.setdefault(name, []).append(_change(content) - _change(partner))
    order = sorted(found, key=lambda name: next(i for i, start in enumerate(SCHEMES) if name.startswith(start)))
    return {name: paired for name in order if (paired := Paired.of(found[name])) is not None}


def _costs(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a run loses under each scheme of 4 bits on both sides."""
    for content in results(run.folder.path, QUANTIZATION):
        if content.get("scheme") in SCHEMES and content.get("only") == "both" and content.get("quantized"):
            yield scheme(content), content


def _change(content: dict[str, Any]) -> float:
    return float(content["quantized"]["change"]["mean"])


def _judge(variant: Variant, reference: Variant, losses: Mapping[str, LossResult], mechanism: Mechanism) -> Result:
    """Of a variant, over the schemes it was measured with."""
    results, words = [], []
    for name, loss in losses.items():
        own = Spread.of(_change(c) for run in reference.runs for key, c in _costs(run) if key == name)
        seen = f"{words_of(loss)}; there the loss rises by {with_range(own, 4)}"
        words.append(f"{name} {with_interval(loss.difference, 4)} ({seen})")
        results.append(Result(_verdict(loss, mechanism), "", loss.visible))
    found, below = combine(results)
    text = f"{variant.label}: rise of the loss minus that of {reference.label}: {', '.join(words)}"
    return Result(found, text, below)


def _verdict(loss: LossResult, mechanism: Mechanism) -> Verdict:
    if loss.call in ("higher", "lower"):
        return "supported" if loss.call == EXPECTED[mechanism] else "contradicted"
    return "no effect" if loss.call == "no effect" else "cannot tell"
