"""What `sinks probe` and `sinks quantize` found out about an analyzed model, as tables and figures of its page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sinks.report import causes
from sinks.report.analysis import Analysis, depth
from sinks.report.measured import PROBES, QUANTIZATION, results
from sinks.report.model_figures import Figure, lines_over_layers
from sinks.report.svg import Series
from sinks.report.tables import Table
from sinks.stats.bootstrap import Interval

# Of each side, where its sites are described, and the edits that a figure draws: as many as it has colors.
SIDES = {
    "residual": ("sites", ("direct", "denominator", "constant-denominator", "mean")),
    "attention": ("layers", ("value", "constant-contribution", "constant-rescaling", "masked")),
}
SCALE_AGAINST_DIRECT = (("denominator", "direct"), ("rescaling", "value"))
TOKENS = {"residual": "{} tokens", "attention": "{} sinks"}


def first_of_each_model(analyses: Sequence[Analysis]) -> list[int]:
    """Places of the first analysis of each model: what was measured is beside all of its analyses, and shown once."""
    folders = [one.path.resolve().parent for one in analyses]
    return [place for place, folder in enumerate(folders) if folder not in folders[:place]]


def measured(one: Analysis, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """What was measured of an analyzed model, which is beside its analyses, each with a name.

    Args:
        one: the analysis.
        kind: "probes" or "quantization".
    """
    model = Path(str(one.content["model"]["name"])).resolve()
    found = [c for c in results(one.path.parent, kind) if Path(str(c.get("model"))).resolve() == model]
    names = [f"{(c.get('rows') or ['?'])[0]} rows of {c.get('text')}" for c in found]
    unique = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
    return list(zip(unique, found, strict=True))


def tables(one: Analysis) -> list[tuple[str, Table]]:
    """Roles with their intervals, the changes of loss site by site, and the schemes, with headings."""
    probes = measured(one, PROBES)
    found = causes.roles(probes, "on", causes.interval)
    for name, content in probes:
        for side, tokens, by_edit in _maps(content):
            sites = list(dict.fromkeys(site for changes in by_edit.values() for site in changes))
            rows = [
                [site, *(causes.interval([c] if (c := changes.get(site)) else []) for changes in by_edit.values())]
                for site in sites
            ]
            heading = f"Change of loss, one place at a time: {side} side, {TOKENS[side].format(tokens)}, {name}"
            found.append((heading, Table([SIDES[side][0].removesuffix("s"), *by_edit], rows)))
            found.append((f"Over these places: {side} side, {TOKENS[side].format(tokens)}, {name}", _over(by_edit)))
    schemes = [_scheme(content) for _, content in measured(one, QUANTIZATION)]
    kinds = list(dict.fromkeys(kind for row in schemes for kind in row))
    if schemes:
        rows = [[row.get(kind, "") for kind in kinds] for row in schemes]
        found.append(("Change of loss under simulated quantization", Table(kinds, rows)))
    return found


def _maps(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, dict[str, Interval]]]]:
    """Side, tokens or sinks, and by edit and site the change of loss with that site alone edited."""
    for side, (described, _) in SIDES.items():
        own = content.get(side) or {}
        by_tokens: dict[str, dict[str, dict[str, Interval]]] = {}
        for key, result in (own.get("edits") or {}).items():
            site, *rest = key.split("|")
            if result and site in (own.get(described) or {}) and rest[-1] == "sink":
                by_tokens.setdefault(rest[0], {}).setdefault(rest[1], {})[site] = result["change"]
        yield from ((side, tokens, by_edit) for tokens, by_edit in by_tokens.items())


def _over(by_edit: dict[str, dict[str, Interval]]) -> Table:
    """Median and largest change of loss over places; and how the scale compares with the direct path."""
    means = {edit: {site: change["mean"] for site, change in changes.items()} for edit, changes in by_edit.items()}
    rows = [
        [edit, str(len(of)), f"{np.median(list(of.values())):+.3f}", f"{max(of.values()):+.3f}"]
        for edit, of in means.items()
    ]
    for scale, direct in SCALE_AGAINST_DIRECT:
        both = means.get(scale, {}).keys() & means.get(direct, {}).keys()
        larger = sum(means[scale][site] >= means[direct][site] for site in both)
        ratios = [means[scale][site] / means[direct][site] for site in both if means[direct][site] > 0]
        if ratios:
            rows += [
                [f"{scale} at least {direct}", f"{larger} of {len(both)}", "", ""],
                [f"{scale} / {direct}, where that is above 0", str(len(ratios)), f"{np.median(ratios):.1f}", ""],
            ]
    return Table(["edit", "places", "median", "largest"], rows)


def _scheme(content: dict[str, Any]) -> dict[str, str]:
    """A row by heading: a scheme with what it costs."""

    def change(part: dict[str, Any] | None) -> str:
        return causes.interval([part["change"]] if part else [])

    row = {
        "scheme": causes.scheme(content),
        "all at once": change(content.get("quantized")),
        "first token kept": change(content.get("first_token_kept")),
        "sink tokens kept": change((content.get("sink_tokens") or {}).get("kept")),
    }
    return row | {f"{kind} alone": change(part) for kind, part in (content.get("kinds_alone") or {}).items()}


def figures(analyses: Sequence[Analysis]) -> list[Figure]:
    """The map over sites, of each side and kind of tokens."""
    lines: dict[tuple[str, str], list[list[Series]]] = {}
    for place in first_of_each_model(analyses):
        one = analyses[place]
        for _, content in measured(one, PROBES):
            for side, tokens, by_edit in _maps(content):
                panels = lines.setdefault((side, tokens), [[] for _ in analyses])
                panels[place] = [_line(one, edit, by_edit[edit]) for edit in SIDES[side][1] if edit in by_edit]
    return [_map(side, tokens, panels) for (side, tokens), panels in lines.items()]


def _map(side: str, tokens: str, panels: Sequence[list[Series]]) -> Figure:
    title = f"What the loss owes to each site: {side} side, {TOKENS[side].format(tokens)}"
    return lines_over_layers(f"{side}-{tokens}-by-site", title,
                             "Change of loss with the sinks of one site edited, on a logarithmic axis: what is zero or "
                             "below is not drawn. docs/probe.md says what each edit does; the table has the intervals.",
                             panels, "change of loss (nats per token)", log=True)  # fmt: skip


def _line(one: Analysis, edit: str, changes: dict[str, Interval]) -> Series:
    places = sorted((depth(site, one.layers), change["mean"]) for site, change in changes.items())
    x, y = np.array(places).T
    return Series(edit, x, np.where(y > 0, y, np.nan))
