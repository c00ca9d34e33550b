"""One self-contained HTML page of analyzed models, from their run folders alone."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinks.errors import UserError
from sinks.record.atomic import replacing
from sinks.report import model_causes
from sinks.report.analysis import Analysis, bos_of, names_of, read_analysis
from sinks.report.model_figures import FIGURES
from sinks.report.model_words import what_stands_out
from sinks.report.render import environment
from sinks.report.svg import SERIES, number


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Args:
        name: its anchor, and the name of its CSV.
        title: its heading.
        headings: of the columns.
        rows: texts and numbers.
        open: whether it is shown at once.
    """

    name: str
    title: str
    headings: list[str]
    rows: list[list[Any]]
    open: bool = False


def write_model_page(folders: Sequence[Path], path: Path) -> None:
    """Write the page of one or several analyses, side by side.

    A folder that cannot be read gets a line on the page.

    Args:
        folders: run folders of `sinks analyze`.
        path: of the HTML file.

    Raises:
        UserError: if none of the folders can be read.
    """
    analyses: list[Analysis] = []
    problems: list[str] = []
    for folder in folders:
        try:
            analyses.append(read_analysis(Path(folder)))
        except UserError as error:
            problems.append(str(error))
    if not analyses:
        raise UserError(problems[0] if problems else "no analysis to show: give folders written by `sinks analyze`")
    templates = environment(html=True)
    text = templates.get_template("model.html.j2").render(contents(analyses) | {"problems": problems})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def contents(analyses: list[Analysis]) -> dict[str, Any]:
    """Everything that the template shows."""
    names = names_of(analyses)
    figures = [*(figure(analyses) for figure in FIGURES), *model_causes.figures(analyses)]
    return {
        "title": "Sinks in " + (names[0] if len(names) == 1 else f"{len(names)} analyses"),
        "analyses": [
            {"name": name, "what": described(one), "sentences": what_stands_out(one)}
            for name, one in zip(names, analyses, strict=True)
        ],
        "figures": [
            {"figure": figure, "panels": [(n, p) for n, p in zip(names, figure.panels, strict=True) if p is not None]}
            for figure in figures
            if any(figure.panels)
        ],
        "absent": [figure.title for figure in figures if not any(figure.panels)],
        "tables": [table for table in tables(names, analyses) if table.rows],
        "provenance": [(name, *reproduction(one)) for name, one in zip(names, analyses, strict=True)],
        "colors": SERIES,
    }


def described(one: Analysis) -> str:
    """Model, text, rows and BOS in a line."""
    model, text = one.content["model"], one.content["text"]
    sizes = {"layers": "layers", "heads": "heads", "width": "channels", "parameters": "parameters"}
    size = ", ".join(f"{model[key]:,} {word}" for key, word in sizes.items() if key in model)
    loss = f"; loss {number(text['loss'])} nats per token" if "loss" in text else ""
    return (
        f"{model['name']}{f' ({size})' if size else ''}, on {text['rows']} rows of {text['tokens_per_row']} tokens of "
        f"{text['source']}, {bos_of(one)}{loss}."
    )


def tables(names: list[str], analyses: list[Analysis]) -> list[Table]:
    """All numbers, what was detected, and what was measured besides."""
    keys = list(dict.fromkeys(key for one in analyses for key in one.scalars))
    rows: list[list[Any]] = [[key, *(one.scalars.get(key) for one in analyses)] for key in keys]
    found = [Table("numbers", "All numbers", ["statistic", *names], rows)]
    for name, one in zip(names, analyses, strict=True):
        beside = f", {name}" if len(names) > 1 else ""
        suffix = f"-{names.index(name)}" if len(names) > 1 else ""
        sinks = one.detection.get("sinks", {})
        tokens = [[repr(str(t["token"])), t["id"], t["count"]] for t in sinks.get("tokens", [])]
        found.append(Table(f"sink-tokens{suffix}", f"Tokens that are sinks{beside}",
                           ["token", "id", "count over layers, heads and rows"], tokens, open=True))  # fmt: skip
        positions = [[p["position"], p["count"]] for p in sinks.get("positions", [])]
        found.append(Table(f"sink-positions{suffix}", f"Positions of sinks{beside}",
                           ["position", "count over layers, heads and rows"], positions))  # fmt: skip
        columns = {"site": "layer", "with_sink": "heads and rows with a sink", "with_first": "with one at position 0",
                   "strongest_first": "strongest key is position 0", "keys": "sink keys", "begins": "begin here",
                   "ends": "end here"}  # fmt: skip
        layers = [[layer.get(key) for key in columns] for layer in sinks.get("layers", [])]
        found.append(Table(f"sink-layers{suffix}", f"Sinks by layer{beside}", list(columns.values()), layers))
        massive = [
            [m["site"], t["position"], repr(str(t["token"])), t["id"], t["count"], t["max_abs"]]
            for m in one.detection.get("massive", [])
            for t in m["top"]
        ]
        found.append(Table(f"massive-tokens{suffix}", f"Massive tokens by site{beside}",
                           ["site", "position", "token", "id", "rows", "largest |h|"], massive))  # fmt: skip
    for place in model_causes.first_of_each_model(analyses):
        one = analyses[place]
        name = f", {one.content['model']['name']}" if len(names) > 1 else ""
        for title, table in model_causes.tables(one):
            rows = [[*row] for row in table.rows]
            found.append(Table(f"causes-{len(found)}", title + name, table.headings, rows, open=True))
    return found


def reproduction(one: Analysis) -> tuple[str, str]:
    """The command of an analysis, and where it ran."""
    command = [str(part) for part in one.provenance.get("command") or []]
    if command and Path(command[0]).name == "__main__.py":
        command[0] = "sinks"
    commit = str(one.provenance.get("commit") or "unknown")[:12]
    changed = " with uncommitted changes" if one.provenance.get("dirty") else ""
    device = str(one.provenance.get("device") or "unknown device")
    facts = [f"folder {one.path}", f"commit {commit}{changed}", device]
    versions = one.provenance.get("versions") or {}
    facts += [f"{name} {version}" for name, version in versions.items() if version]
    return shlex.join(command), ", ".join(facts)
