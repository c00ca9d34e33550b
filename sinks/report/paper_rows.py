"""The paper's row of a variant beside its runs: largest |h| and loss, each against the row that the paper names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sinks.report.ablation import Variant
from sinks.report.loss import LossResult, judge_losses
from sinks.report.outcomes import Comparison, differences
from sinks.stats.paired import Paired

OUTLIERS = "residual_max_abs"


@dataclass(frozen=True)
class Beside:
    """What the paper and these runs have of a variant and its reference.

    Args:
        reference: the variant that both are compared with; None if the paper's row names none.
        outliers: the paper's, over those of its reference.
        ratios: largest |h| over that of the reference's run of the same seed, one for each seed.
        loss_difference: the paper's.
        loss: differences over the seeds, judged as one family with the other rows.
    """

    reference: Variant | None
    outliers: float | None = None
    ratios: tuple[float, ...] = ()
    loss_difference: float | None = None
    loss: LossResult | None = None

    @property
    def opposite(self) -> bool:
        """Whether outliers rise in every seed where the paper's fall, or fall where they rise."""
        if self.outliers is None or not self.ratios or self.outliers == 1:
            return False
        return all((ratio > 1) == (self.outliers < 1) and ratio != 1 for ratio in self.ratios)


def beside(comparison: Comparison) -> Mapping[str, Beside]:
    """By name, of every variant with a row of the paper."""
    named = {variant.name: variant for variant in comparison.ablation.variants}
    with_row = {name: variant.paper_row for name, variant in named.items() if variant.paper_row is not None}
    found = {}
    losses: dict[str, Paired] = {}
    for name, row in with_row.items():
        reference = named.get(row.reference) if row.reference else None
        other = with_row.get(row.reference) if row.reference else None
        if reference is not None and (paired := Paired.of(list(differences(named[name], reference).values()))):
            losses[name] = paired
        found[name] = Beside(
            reference=reference,
            outliers=row.outliers / other.outliers if row.outliers and other and other.outliers else None,
            ratios=() if reference is None else _ratios(named[name], reference),
            loss_difference=row.loss - other.loss
            if row.loss is not None and other and other.loss is not None
            else None,
        )
    judged = judge_losses(losses)[1]
    return {name: replace(each, loss=judged.get(name)) for name, each in found.items()}


def _ratios(variant: Variant, reference: Variant) -> tuple[float, ...]:
    partners = {run.seed: run.value(OUTLIERS) for run in reference.runs}
    return tuple(
        own / other
        for run in variant.runs
        if (own := run.value(OUTLIERS)) is not None and (other := partners.get(run.seed))
    )
