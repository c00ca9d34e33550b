"""What `sinks probe` and `sinks quantize` wrote into the runs of an ablation, as tables of its variants."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from sinks.report.ablation import Ablation
from sinks.report.measured import PROBES, QUANTIZATION, STEP, results
from sinks.report.spread import Spread
from sinks.report.tables import NONE, Table, with_half_range, with_range
from sinks.stats.bootstrap import Interval, as_text

NOTE = (
    "Of the runs that sinks probe and sinks quantize measured, in nats per token; mean and range over seeds. Effects "
    "are changes of loss minus those of random controls: docs/probe.md says what each role means."
)
ROLES = ("bias", "contributes", "constant scale", "rescales")
# The edit whose change of loss is shown beside the effects: what it costs to be without the sink.
WITHOUT = {"attention": ("masked", "masked, the rest renormalized"), "residual": ("mean", "held at their mean")}
SIZE = {"attention": "mass on sinks, largest of all heads", "residual": "R, largest of all norms"}
# Of a place: sites or layers, and which tokens or keys.
HEADINGS = {"attention": "Attention side, layers: {}, sinks: {}", "residual": "Residual side, norms: {}, tokens: {}"}
# Options of quantization that are named where they are not these.
USUAL = {"transform": "none", "activation_scale": "row", "only": "both", "weight_rounding": "nearest"}
ALL_KINDS = {"attention.in", "attention.out", "feed_forward.in", "feed_forward.out"}  # and those that few models have
Labeled = Iterable[tuple[str, dict[str, Any]]]  # what a command wrote, with the name of its row


def tables(ablation: Ablation) -> list[tuple[str, Table]]:
    """Tables with their headings, of what any run has: probes by side, place and tokens; then quantization."""
    return [
        *roles((each for each in _of_variants(ablation, PROBES) if STEP not in each[1]), "variant", over_seeds),
        *_over_training(ablation),
        *_quantization(_of_variants(ablation, QUANTIZATION)),
    ]


def _of_variants(ablation: Ablation, kind: str) -> Labeled:
    for variant in ablation.variants:
        for run in variant.runs:
            yield from ((variant.label, content) for content in results(run.folder.path, kind))


def _over_training(ablation: Ablation) -> list[tuple[str, Table]]:
    """The same of series of checkpoints, a row for each step."""
    series = [(label, content) for label, content in _of_variants(ablation, PROBES) if STEP in content]
    variants = list(dict.fromkeys(label for label, _ in series))
    series.sort(key=lambda each: (variants.index(each[0]), each[1][STEP]))
    rows = ((f"{label}, step {content[STEP]}", content) for label, content in series)
    return [(f"Over training. {heading}", table) for heading, table in roles(rows, "variant and step", over_seeds)]


def over_seeds(changes: list[Interval]) -> str:
    """Mean and range of changes of loss."""
    return with_range(Spread.of(change["mean"] for change in changes), 3)


def interval(changes: list[Interval]) -> str:
    """The only change of loss, with its 95 % interval."""
    return as_text(changes[0], 3) if changes else NONE


def roles(measured: Labeled, heading: str, cell: Callable[[list[Interval]], str]) -> list[tuple[str, Table]]:
    """Effects and roles as tables with their headings, by side, place and tokens.

    Args:
        measured: contents of probes.
        heading: of the rows.
        cell: all changes of a row and column, as text.
    """
    by_place: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for label, content in measured:
        for side in WITHOUT:
            _collect(side, content.get(side) or {}, by_place, label)
    return [
        (HEADINGS[side].format(*place.split("|")), _table(side, by_label, heading, cell))
        for (side, place), by_label in by_place.items()
    ]


def _collect(
    side: str, content: dict[str, Any], by_place: dict[tuple[str, str], dict[str, list[dict[str, Any]]]], label: str
) -> None:
    edits = content.get("edits") or {}
    for place, role in (content.get("roles") or {}).items():
        edit, role = edits.get(f"{place}|{WITHOUT[side][0]}|sink") or {}, role or {}
        entry = {"without": edit.get("change"), **(role.get("effects") or {}), "named": role.get("named") or []}
        entry["size"] = _size(side, content)
        by_place.setdefault((side, place), {}).setdefault(label, []).append(entry)


def _size(side: str, content: dict[str, Any]) -> float | None:
    """Of the largest sink: the largest score of all norm sites, or the mean mass on sinks of the head with the most."""
    described = (content.get("sites" if side == "residual" else "layers") or {}).values()
    sizes = [x for each in described for x in ([each["score"]] if side == "residual" else each["mean_mass"])]
    return max(sizes, default=None)


def _table(
    side: str,
    by_label: dict[str, list[dict[str, Any]]],
    heading: str,
    cell: Callable[[list[Interval]], str],
) -> Table:
    rows = []
    for label, entries in by_label.items():
        cells = [cell([e[key] for e in entries if e.get(key)]) for key in ("without", *ROLES)]
        named = Counter(", ".join(e["named"]) for e in entries)
        shown = "; ".join(f"{name} ({count} of {len(entries)})" for name, count in named.most_common())
        size = with_half_range(Spread.of(e["size"] for e in entries), 2)
        rows.append([label, size, *cells, next(iter(named)) if len(entries) == 1 else shown])
    headings = [heading, SIZE[side], f"change of loss, sinks {WITHOUT[side][1]}", *ROLES, "role"]
    return Table(headings, rows, frozenset({0, len(headings) - 1}))


def _quantization(measured: Labeled) -> list[tuple[str, Table]]:
    changes: dict[str, dict[str, list[Interval]]] = {}
    for label, content in measured:
        change = (content.get("quantized") or {}).get("change")
        changes.setdefault(scheme(content), {}).setdefault(label, []).extend([change] if change else [])
    labels = list(dict.fromkeys(label for by_label in changes.values() for label in by_label))
    rows = [[label, *(over_seeds(by_label.get(label, [])) for by_label in changes.values())] for label in labels]
    return [("Change of loss under simulated quantization", Table(["variant", *changes], rows))] if rows else []


def scheme(content: dict[str, Any]) -> str:
    """A scheme with what is unusual about it, and the rows that were scored."""
    more = [str(content[key]) for key, usual in USUAL.items() if content.get(key, usual) != usual]
    kinds = content.get("kinds") or ALL_KINDS
    more += ["gates"] if "gate" in kinds else []
    more += [] if ALL_KINDS.issubset(kinds) else [f"only {' and '.join(kinds)}"]
    more += ["keys and values"] if content.get("kv") == "quantize" else []
    rows = content.get("rows") or ["?"]
    return f"{', '.join([str(content.get('scheme')), *more])} ({rows[0]} rows)"
