"""Controls of the notebooks, which need the extra `notebooks`.

A figure is an ordinary output of its cell, which its controls replace: it is saved with the notebook, and is there
where no kernel runs.
"""

import base64
import os
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any, Literal

import ipywidgets as widgets
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from sinks.errors import UserError
from sinks.record import RunFolder, Statistics
from sinks.record.folder import NotRecorded, find_runs
from sinks.report.ablation import load_ablation
from sinks.report.figures.style import to_png
from sinks.report.outcomes import Comparison, compare
from sinks.report.tables import Table

FOLDERS = "SINKS_RUNS"  # environment variable: folders to look in, in place of runs and experiments/results
DOTS = 72  # per inch of a figure
Kind = Literal["ablation", "run", "checkpoint", "analysis"]
# What to run where there is nothing to choose from.
HINTS: dict[Kind, str] = {
    "ablation": "`make ablation` trains one (minutes)",
    "run": "`make ablation` trains some (minutes)",
    "checkpoint": "`make ablation` trains some (minutes)",
    "analysis": "`make analyze` makes one (minutes)",
}
NAMES: dict[Kind, str] = {
    "ablation": "ablation",
    "run": "run",
    "checkpoint": "run with a checkpoint",
    "analysis": "analysis of a pretrained model",
}
WIDGET = "application/vnd.jupyter.widget-view+json"  # as ipywidgets displays its own, but for the text
WIDE = {"width": "36em"}
Shown = Figure | Table | str | None


def project() -> Path:
    """The folder of the project that a notebook is in, seen from there; the current one if it is in none.

    It is relative, so that no message that is saved with a notebook names a path of the machine.
    """
    here = Path.cwd()
    found = next((each for each in (here, *here.parents) if (each / "pyproject.toml").is_file()), here)
    return Path(os.path.relpath(found))


def folders(kind: Kind) -> dict[str, Path]:
    """What there is to choose from below runs/ and experiments/results/, by name."""
    named = os.environ.get(FOLDERS)
    roots = map(Path, named.split(os.pathsep)) if named else (project() / "runs", project() / "experiments/results")
    found = (path for root in roots for path in _below(root, kind))
    return {_name(path): path for path in found}


def _name(path: Path) -> str:
    root, path = project().resolve(), path.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else "/".join(path.parts[-3:])


def _below(root: Path, kind: Kind) -> Iterable[Path]:
    if kind == "ablation":
        return [path.parent for path in sorted(root.glob("**/ablation.yaml")) if _finished(path.parent)]
    return [
        folder.path
        for folder in find_runs(root)
        if folder.finished
        and folder.analyzed == (kind == "analysis")
        and (kind != "checkpoint" or folder.last_checkpoint is not None)
    ]


def _finished(path: Path) -> list[RunFolder]:
    return [folder for folder in find_runs(path) if folder.finished and not folder.analyzed]


def choose(kind: Kind, prefer: str = "") -> Any:
    """A control whose value is the path of a folder; None if there is none, which `show` says.

    Args:
        kind: of folder.
        prefer: part of the name of the one that is chosen at first.

    Returns:
        The control; that of an ablation has a note with a line for each of its run folders that cannot be read.
    """
    found: dict[str, Path | None] = dict(folders(kind))
    options = list(found.items()) or [(f"none: {HINTS[kind].replace('`', '')}", None)]
    first = next((path for name, path in options if prefer in name), options[0][1])
    control = widgets.Dropdown(
        options=options, value=first, description="run" if kind == "checkpoint" else kind, layout=WIDE
    )
    control.missing = f"There is no {NAMES[kind]} here: {HINTS[kind]}, then run this notebook again."
    if kind == "ablation":
        control.note = widgets.HTML()

        def update(_: Any = None) -> None:
            try:
                broken = load_ablation(control.value).broken if control.value else []
            except UserError:  # which the figures say
                broken = []
            control.note.value = "<br>".join(map(escape, broken))

        update()
        control.observe(update, names="value")
    return control


def seeds_of(path: Path, variants: Iterable[str] = ()) -> dict[str, RunFolder]:
    """One run of each variant of an ablation, by its name in figures; of all variants if none is named."""
    chosen = list(variants)
    shown = [v for v in load_ablation(path).variants if v.runs and (not chosen or v.name in chosen)]
    return {variant.short: variant.runs[0].folder for variant in shown}


def comparison(path: Path, variants: Iterable[str] = ()) -> Comparison:
    """The ablation at a path, of the named variants beside its baseline; of all if none is named."""
    ablation, chosen = load_ablation(path), set(variants)
    if chosen:
        ablation.variants = [v for v in ablation.variants if v is ablation.baseline or v.name in chosen]
    return compare(ablation)


def choose_variants(ablation: Any, prefer: Iterable[str] = ()) -> Any:
    """A control whose value is a tuple of names of the variants of the chosen ablation.

    Args:
        ablation: control that `choose` made.
        prefer: names of those that are chosen at first; all if none of them is there.
    """
    control = widgets.SelectMultiple(description="variants", rows=8, layout=WIDE)
    preferred = list(prefer)

    def update() -> None:
        known = [v for v in load_ablation(ablation.value).variants if v.runs] if ablation.value else []
        names = [v.name for v in known]
        control.options = [(v.short, v.name) for v in known]
        control.value = tuple(name for name in preferred if name in names) or tuple(names)

    return _following(control, ablation, update, ())


def choose_of(description: str, options: Callable[[Path], Iterable[str]], source: Any, missing: str) -> Any:
    """A control whose options depend on the folder that another one has.

    Args:
        description: its name.
        options: of a folder.
        source: control that `choose` made.
        missing: what is said where there are no options.
    """
    control = widgets.Dropdown(description=description, options=[("none", None)], layout=WIDE)

    def update() -> None:
        found = list(options(source.value)) if source.value else []
        control.missing = missing
        control.options = [(name, name) for name in found] or [("none", None)]
        control.value = control.options[0][1]

    return _following(control, source, update, [("none", None)])


def _following(control: Any, source: Any, update: Callable[[], None], none: Iterable[Any]) -> Any:
    """A control that is updated whenever another one changes, before anything is drawn.

    Args:
        control: to update.
        source: control that it follows.
        update: sets its options and value.
        none: its options where the folder is damaged, which is then said in place of the figure.
    """

    def follow(_: Any = None) -> None:
        try:
            update()
        except UserError as error:
            control.missing = str(error)
            control.options = none

    follow()
    source.observe(follow, names="value")
    return control


def logged(path: Path) -> tuple[str, Statistics]:
    """The statistics of a run's training steps, or of its validations where no others were kept, with their stage."""
    folder = RunFolder(path)
    try:
        return "train", folder.statistics("train")
    except NotRecorded:
        return "validation", folder.statistics("validation")


def choose_step(run: Any) -> Any:
    """A slider over the logged steps of the chosen run, whose value is a position on the step axis."""
    control = widgets.SelectionSlider(options=[("", 0)], description="step", continuous_update=False, layout=WIDE)

    def update() -> None:
        steps = logged(run.value)[1].steps.tolist() if run.value else [0]
        control.options = [(f"{step:,}", place) for place, step in enumerate(steps)]
        control.value = len(steps) - 1

    return _following(control, run, update, [("none", 0)])


def show(draw: Callable[..., Shown], **controls: Any) -> None:
    """Display controls that are not displayed yet, and below them what a function of their values returns.

    Args:
        draw: takes the values by name; returns a figure, a table, a text in Markdown, or None if there is nothing.
        controls: by name.
    """
    _display_controls(controls.values())
    handle = _display(_result(draw, controls))

    def redraw(_: Any) -> None:
        handle.update(_result(draw, controls), raw=True)

    for control in controls.values():
        control.observe(redraw, names="value")


def act(label: str, work: Callable[..., Shown], **controls: Any) -> Any:
    """A button that runs a function of the controls' values, and below it what that returns.

    Args:
        label: on the button.
        work: as `draw` of `show`.
        controls: by name.
    """
    button = widgets.Button(description=label, layout={"width": "auto"})
    _display_controls([*controls.values(), button])
    handle = _display(_bundle(f'*Press "{label}".*'))

    def run(_: Any) -> None:
        button.disabled = True
        handle.update(_bundle("*Running ...*"), raw=True)
        try:
            handle.update(_result(work, controls), raw=True)
        finally:
            button.disabled = False

    button.on_click(run)
    return button


def _display(bundle: dict[str, str]) -> DisplayHandle:
    handle = display(bundle, raw=True, display_id=True)
    assert handle is not None
    return handle


def _display_controls(controls: Iterable[Any]) -> None:
    """Controls in a column, each displayed once; their settings in a line where no kernel runs."""
    new = [control for control in controls if not getattr(control, "displayed", False)]
    if not new:
        return
    for control in new:
        control.displayed = True
    column = [part for control in new for part in (control, getattr(control, "note", None)) if part is not None]
    view = {"version_major": 2, "version_minor": 0, "model_id": widgets.VBox(column).model_id}
    display({WIDGET: view, "text/plain": f"[{'; '.join(map(_setting, new))}]"}, raw=True)


def _setting(control: Any) -> str:
    """A control in words, where no kernel runs."""
    chosen = getattr(control, "label", getattr(control, "value", None))
    if isinstance(chosen, tuple):
        chosen = f"{len(chosen)} of {len(control.options)}"
    return control.description if isinstance(control, widgets.Button) else f"{control.description}: {chosen}"


def _result(draw: Callable[..., Shown], controls: Mapping[str, Any]) -> dict[str, str]:
    for control in controls.values():
        if control.value is None:
            return _bundle(control.missing)
    try:
        return _bundle(draw(**{name: control.value for name, control in controls.items()}))
    except UserError as error:
        return _bundle(str(error))


def _bundle(shown: Shown) -> dict[str, str]:
    """What a front end displays, by MIME type."""
    if shown is None:
        return _bundle("Nothing of this was recorded here.")
    if isinstance(shown, Figure):
        return {"image/png": base64.b64encode(to_png(shown, DOTS)).decode(), "text/plain": "[figure]"}
    if isinstance(shown, Table):
        return {"text/html": _html(shown), "text/plain": "[table]"}
    return {"text/markdown": shown, "text/plain": shown}


def _html(table: Table) -> str:
    def row(cells: list[str], kind: str) -> str:
        side = ["left" if i in table.text_columns else "right" for i in range(len(cells))]
        shown = (f'<{kind} style="text-align:{s}">{escape(c)}</{kind}>' for s, c in zip(side, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return f"<table><thead>{row(table.headings, 'th')}</thead><tbody>{body}</tbody></table>"
