"""How many more tokens the baseline needs for a variant's loss."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sinks.report.ablation import Ablation, Variant
from sinks.report.outcomes import LOSS
from sinks.report.tables import NONE, Table

INTERVAL_FROM = 5  # seeds
DRAWS = 10_000
NOTE = (
    "D'/D - 1, where the baseline trained on D' tokens has the mean loss of the variant trained on D: interpolated "
    "linearly in log tokens between the baseline's runs, each with its own end of the schedule. Outside their budgets "
    f"only the side is known. 95 % intervals by resampling seeds, from {INTERVAL_FROM} on."
)


def saved(tokens: Sequence[float], losses: Sequence[float], loss: float) -> float:
    """D'/D - 1 of a variant trained on the fewest tokens; -inf where its loss is above the baseline's there, inf where
    it is below that of the most tokens.

    Args:
        tokens: of the baseline's runs, ascending.
        losses: their mean losses.
        loss: of the variant.
    """
    if loss > losses[0]:
        return -math.inf
    for (fewer, above), (more, below) in zip(
        zip(tokens, losses, strict=True), zip(tokens[1:], losses[1:], strict=True), strict=False
    ):
        if below <= loss <= above:
            part = (above - loss) / (above - below) if above > below else 0.0
            return (fewer / tokens[0]) * (more / fewer) ** part - 1
    return math.inf


def table(ablation: Ablation) -> Table | None:
    """A row for each variant of the smallest budget; None unless the ablation file names a curve of two or more
    budgets that were run."""
    curve = [v for name in ablation.tokens_curve for v in ablation.variants if v.name == name and v.runs]
    tokens = [count for variant in curve if (count := _tokens(variant)) is not None]
    if not 2 <= len(tokens) == len(curve) or tokens != sorted(tokens):
        return None
    rows = []
    for variant in ablation.variants:
        if variant in curve or _tokens(variant) != tokens[0]:
            continue
        losses = [_losses(each) for each in (*curve, variant)]
        seeds = sorted(set.intersection(*(set(found) for found in losses)))
        if not seeds:
            continue
        of = np.array([[found[seed] for seed in seeds] for found in losses])  # [budgets + 1, seeds]
        means = of.mean(1)
        rows.append(
            [
                variant.label,
                str(len(seeds)),
                f"{means[-1]:.4f}",
                _words(saved(tokens, means[:-1].tolist(), float(means[-1])), tokens),
                _interval(tokens, of) if len(seeds) >= INTERVAL_FROM else NONE,
            ]
        )
    return Table(["variant", "seeds", "validation loss", "tokens saved", "95 % interval"], rows) if rows else None


def _tokens(variant: Variant) -> float | None:
    found = {run.value("tokens") for run in variant.runs}
    return next(iter(found)) if len(found) == 1 else None


def _losses(variant: Variant) -> Mapping[int, float]:
    return {run.seed: loss for run in variant.runs if run.seed is not None and (loss := run.value(LOSS)) is not None}


def _interval(tokens: Sequence[float], of: np.ndarray) -> str:
    """The same seeds are drawn for all: their runs share data and order."""
    drawn = np.random.default_rng(0).integers(of.shape[1], size=(DRAWS, of.shape[1]))
    means = of[:, drawn].mean(2)  # [budgets + 1, draws]
    found = np.sort([saved(tokens, losses[:-1].tolist(), float(losses[-1])) for losses in means.T])
    low, high = found[round(0.025 * (DRAWS - 1))], found[round(0.975 * (DRAWS - 1))]
    return f"{_words(low, tokens)} to {_words(high, tokens)}"


def _words(value: float, tokens: Sequence[float]) -> str:
    if math.isinf(value):
        return "below 0" if value < 0 else f"above {tokens[-1] / tokens[0] - 1:g}"
    return f"{value:.2f}"
