"""Where the paper's rows and these runs disagree, at the level that their seeds can carry: sentences of the answer."""

from collections.abc import Iterable, Mapping

from sinks.report.claims import Claim
from sinks.report.outcomes import ATTENTION, MEASURES, Comparison, Outcome, VariantResult
from sinks.report.paper_rows import Beside, beside
from sinks.report.spread import MATERIAL, Spread
from sinks.report.tables import with_half_range, with_interval
from sinks.report.wording import NAMES, listed, short

# Below this first-token mass of its strongest head a seed of a baseline with an attention sink is named.
FORMED_FROM = 0.2
OUTCOMES: Mapping[Outcome, str] = {
    "in part": "As the paper expects in part only",
    "no effect": "No effect, so no evidence either way",
}


def sentences(comparison: Comparison, claims: Iterable[Claim]) -> list[str]:
    """Every disagreement, and how far it goes; empty if there is none."""
    rows = beside(comparison)
    found = [*_divergence(comparison), *_outliers(comparison, rows), *_losses(comparison, rows)]
    known = [*_against(comparison, claims), *_without_sink(comparison), *found, *_outcomes(comparison)]
    return [*known, _reach(comparison)] if known else []


def _against(comparison: Comparison, claims: Iterable[Claim]) -> list[str]:
    """The claims and the expectations of the paper that do not hold."""
    contradicted = [f"{claim.key} ({claim.claim.rstrip('.')})" for claim in claims if claim.verdict == "contradicted"]
    contrary = [f"{r.variant.short} ({r.reason})" for r in comparison.results if r.outcome == "contrary"]
    contrary += [f"{r.variant.short} ({words}, one seed)" for r in comparison.results if (words := _other_way(r))]
    parts = [f"{what} {listed(found)}" for what, found in (("claims", contradicted), ("variants", contrary)) if found]
    return [f"Against the paper: {'; '.join(parts)}."] if parts else []


def _reach(comparison: Comparison) -> str:
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
        f"{MEASURES[key]} rises from {short(base.spreads[key])} to {short(result.spreads[key])}"
        for key in NAMES
        if result.expected.get(key) == "falls"
        and result.changes.get(key) == "one seed"
        and result.spreads[key].mean > (1 + MATERIAL) * base.spreads[key].mean
    ]
    return ", ".join(rise)


def _divergence(comparison: Comparison) -> list[str]:
    known = [(r.variant, r.variant.paper_row) for r in comparison.results if r.variant.paper_row is not None]
    stable = [v.label for v, row in known if row.diverges and v.runs and not v.diverged]
    diverged = [v.label for v, row in known if not row.diverges and v.diverged]
    return [
        *([f"Diverged in the paper and not here: {'; '.join(stable)}."] if stable else []),
        *([f"Diverged here and not in the paper: {'; '.join(diverged)}."] if diverged else []),
    ]


def _outliers(comparison: Comparison, rows: Mapping[str, Beside]) -> list[str]:
    """Directions of the largest |h| that are the opposite of the paper's in every seed."""
    opposite, seeds = [], set()
    for result in comparison.results:
        row = rows.get(result.variant.name)
        if row is None or not row.opposite or row.reference is None:
            continue
        seeds.add(len(row.ratios))
        here = with_half_range(Spread.of(row.ratios), 2)
        opposite.append(f"{result.variant.label} ({row.outliers:.2f} there, {here} here, of {row.reference.label})")
    if not opposite:
        return []
    one = " One seed gives a direction without a spread." if 1 in seeds else ""
    return [f"Opposite direction of the largest |h|: {'; '.join(opposite)}.{one}"]


def _losses(comparison: Comparison, rows: Mapping[str, Beside]) -> list[str]:
    """Loss differences whose sign is known here and not the paper's; that one seed gives none."""
    known = [
        (result.variant.label, row.loss_difference, row.loss)
        for result in comparison.results
        if (row := rows.get(result.variant.name)) and row.loss_difference is not None and row.loss is not None
    ]
    opposite = [
        f"{label} ({there:+.3f} there, {with_interval(here.difference, 4)} here)"
        for label, there, here in known
        if here.call == ("lower" if there > 0 else "higher")
    ]
    single = sum(here.call == "one seed" for *_, here in known)
    return [
        *([f"Opposite sign of the loss difference: {'; '.join(opposite)}."] if opposite else []),
        *([f"Of {single} rows one seed cannot tell the sign of the loss difference."] if single else []),
    ]


def _outcomes(comparison: Comparison) -> list[str]:
    return [
        f"{words}: {'; '.join(f'{r.variant.label} ({r.reason})' for r in chosen)}."
        for outcome, words in OUTCOMES.items()
        if (chosen := [r for r in comparison.results if r.outcome == outcome])
    ]


def _without_sink(comparison: Comparison) -> list[str]:
    """Seeds of the baseline without the sink that the others have."""
    base = comparison.baseline
    if base is None or ATTENTION not in base.sinks:
        return []
    lacking = [
        f"{run.seed_name} ({mass:.2f})"
        for run in base.variant.runs
        if (mass := run.value(ATTENTION)) is not None and mass < FORMED_FROM
    ]
    if not lacking:
        return []
    return [f"First-token mass of the baseline's strongest head is below {FORMED_FROM} at seed {', '.join(lacking)}."]
