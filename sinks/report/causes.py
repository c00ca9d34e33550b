"""What `sinks probe` and `sinks quantize` wrote into the runs of an ablation, as tables of its variants."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from sinks.report.ablation import Ablation, Variant
from sinks.report.measured import PROBES, QUANTIZATION, results
from sinks.report.spread import Spread
from sinks.report.tables import Table, with_range

NOTE = (
    "Of the runs that sinks probe and sinks quantize measured, in nats per token; mean and range over seeds. Effects "
    "are changes of loss minus those of random controls: docs/probe.md says what each role means."
)
ROLES = ("bias", "contributes", "constant scale", "rescales")
# The edit whose change of loss is shown beside the effects: what it costs to be without the sink.
WITHOUT = {"attention": ("masked", "masked, the rest renormalized"), "residual": ("mean", "held at their mean")}
# Of a place: sites or layers, and which tokens or keys.
HEADINGS = {"attention": "Attention side, layers: {}, sinks: {}", "residual": "Residual side, norms: {}, tokens: {}"}
# Options of quantization that are named where they are not these.
USUAL = {"transform": "none", "activation_scale": "row", "only": "both", "weight_rounding": "nearest"}


def tables(ablation: Ablation) -> list[tuple[str, Table]]:
    """Tables with their headings, of what any run has: probes by side, place and tokens; then quantization."""
    return [*_probes(ablation.variants), *_quantization(ablation.variants)]


def _probes(variants: Iterable[Variant]) -> list[tuple[str, Table]]:
    by_place: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for variant in variants:
        for run in variant.runs:
            for content in results(run.folder.path, PROBES):
                for side in WITHOUT:
                    _collect(side, content.get(side) or {}, by_place, variant.label)
    return [
        (HEADINGS[side].format(*place.split("|")), _table(side, by_variant))
        for (side, place), by_variant in by_place.items()
    ]


def _collect(
    side: str, content: dict[str, Any], by_place: dict[tuple[str, str], dict[str, list[dict[str, Any]]]], label: str
) -> None:
    edits = content.get("edits") or {}
    for place, role in (content.get("roles") or {}).items():
        edit = edits.get(f"{place}|{WITHOUT[side][0]}|sink") or {}
        entry = {"without": edit.get("change"), **(role.get("effects") or {}), "named": role.get("named") or []}
        by_place.setdefault((side, place), {}).setdefault(label, []).append(entry)


def _table(side: str, by_variant: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for label, entries in by_variant.items():
        cells = [
            with_range(Spread.of((e.get(key) or {}).get("mean") for e in entries), 3) for key in ("without", *ROLES)
        ]
        named = Counter(", ".join(e["named"]) for e in entries)
        roles = "; ".join(f"{name} ({count} of {len(entries)})" for name, count in named.most_common())
        rows.append([label, *cells, roles])
    headings = ["variant", f"change of loss, sinks {WITHOUT[side][1]}", *ROLES, "role"]
    return Table(headings, rows, frozenset({0, len(headings) - 1}))


def _quantization(variants: Iterable[Variant]) -> list[tuple[str, Table]]:
    changes: dict[str, dict[str, list[float | None]]] = {}
    for variant in variants:
        for run in variant.runs:
            for content in results(run.folder.path, QUANTIZATION):
                change = ((content.get("quantized") or {}).get("change") or {}).get("mean")
                changes.setdefault(_scheme(content), {}).setdefault(variant.label, []).append(change)
    labels = list(dict.fromkeys(label for by_variant in changes.values() for label in by_variant))
    rows = [
        [label, *(with_range(Spread.of(by_variant.get(label, [])), 3) for by_variant in changes.values())]
        for label in labels
    ]
    return [("Change of loss under simulated quantization", Table(["variant", *changes], rows))] if rows else []


def _scheme(content: dict[str, Any]) -> str:
    """A scheme with what is unusual about it, and the rows that were scored."""
    more = [str(content[key]) for key, usual in USUAL.items() if content.get(key, usual) != usual]
    rows = content.get("rows") or ["?"]
    return f"{', '.join([str(content.get('scheme')), *more])} ({rows[0]} rows)"
