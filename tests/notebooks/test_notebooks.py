"""The notebooks on tiny folders, cell by cell in this process: every figure is drawn, and every control redraws."""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

widgets = pytest.importorskip("ipywidgets")

from notebooks.execute import LARGEST, machine_paths  # noqa: E402
from sinks.report import notebook  # noqa: E402
from tests.notebooks.folders import NAMES, NOTEBOOKS, OWN, PROJECT, make  # noqa: E402

# Controls that only a button reads.
BEHIND_A_BUTTON = {"rescale_or_contribute": ("trained", "side"), "quantize_it": ("trained", "number", "transform")}


class Output:
    """What a cell displays, as it is now."""

    def __init__(self, bundle: dict[str, str]) -> None:
        self.bundle = bundle
        self.drawn = 1

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        self.bundle = bundle
        self.drawn += 1


class Session:
    """The cells of a notebook, run one after the other."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, replace: tuple[tuple[str, str], ...] = ()) -> None:
        self.outputs: list[Output] = []
        self.names: dict[str, Any] = {}
        monkeypatch.setattr(notebook, "display", self._display)
        monkeypatch.setattr(notebook, "DOTS", 24)  # which is faster
        monkeypatch.chdir(NOTEBOOKS)
        for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                source = cell.source
                for old, new in replace:
                    source = source.replace(old, new)
                exec(compile(source, f"{name}.ipynb", "exec"), self.names)

    def _display(self, bundle: dict[str, str], raw: bool, display_id: bool = False) -> Output | None:
        assert raw
        if not display_id:
            return None
        self.outputs.append(Output(bundle))
        return self.outputs[-1]

    def bundles(self) -> list[dict[str, str]]:
        return [output.bundle for output in self.outputs]

    def controls(self) -> Iterator[tuple[str, Any]]:
        kinds = (widgets.Dropdown, widgets.SelectMultiple, widgets.SelectionSlider)
        return ((name, value) for name, value in self.names.items() if isinstance(value, kinds))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != OWN])
def test_every_figure_is_drawn_and_every_control_redraws(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notebook.FOLDERS, str(root))
    session = Session(name, monkeypatch)
    assert session.outputs
    for bundle in session.bundles():
        if "image/png" in bundle:
            assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        else:
            assert not bundle["text/plain"].startswith(("There is no", "No run", "Nothing")), bundle
    for each, control in session.controls():
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        if len(values) < 2:
            continue
        drawn = sum(output.drawn for output in session.outputs)
        many = isinstance(control, widgets.SelectMultiple)
        control.value = (values[0],) if many else next(value for value in values if value != control.value)
        if each not in BEHIND_A_BUTTON.get(name, ()):
            assert sum(output.drawn for output in session.outputs) > drawn, each


@pytest.mark.parametrize("name", [name for name in NAMES if name != OWN])
def test_what_is_missing_is_said_in_a_line_with_what_to_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notebook.FOLDERS, str(tmp_path))
    for bundle in Session(name, monkeypatch).bundles():
        assert set(bundle) == {"text/markdown", "text/plain"}
        text = bundle["text/plain"]
        assert "\n" not in text
        assert "`make " in text or text.startswith("*Press")
        target = text.partition("`make ")[2].partition("`")[0]
        assert f"\n{target}:" in (PROJECT / "Makefile").read_text() if target else True


def test_the_picture_follows_the_run_and_the_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notebook.FOLDERS, str(root))
    session = Session("watch_a_sink_form", monkeypatch)
    run, step, text = (session.names[name] for name in ("run", "step", "text"))
    run.value = root / "backcopy/baseline/seed0"
    assert [label for label, _ in step.options] == ["100", "200", "300", "400", "500", "600", "700", "800"]
    assert step.value == 7
    heads, curves, attention = session.bundles()
    step.value = 0
    assert session.bundles()[0]["image/png"] != heads["image/png"]
    assert session.bundles()[1]["image/png"] != curves["image/png"]
    assert session.bundles()[2] == attention
    text.value = "a set."
    assert session.bundles()[2]["image/png"] != attention["image/png"]
    text.value = "7!"
    assert "'!7'" in session.bundles()[2]["text/plain"]


def test_what_is_damaged_is_said_in_a_line_and_the_rest_is_shown(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "backcopy", tmp_path / "backcopy")
    for file in (tmp_path / "backcopy/gated-norm/seed0/statistics").iterdir():
        file.write_bytes(b"no tensors")
    (tmp_path / "backcopy/learnable-sink/seed0/probes/a.json").write_text("{")
    monkeypatch.setenv(notebook.FOLDERS, str(tmp_path))
    session = Session("watch_a_sink_form", monkeypatch)
    run = session.names["run"]
    for variant, shown in (("gated-norm", "text/plain"), ("baseline", "image/png")):
        run.value = tmp_path / f"backcopy/{variant}/seed0"
        assert all(shown in bundle for bundle in session.bundles()[:2])
        assert ("is damaged" in session.bundles()[0]["text/plain"]) == (variant == "gated-norm")
    session = Session("rescale_or_contribute", monkeypatch)
    assert "image/png" in session.bundles()[0]  # of what can be read
    note = session.names["ablation"].note.value
    assert note.count("is damaged") == 2
    assert "learnable-sink/seed0/probes/a.json" in note


@pytest.mark.parametrize("name", ["rescale_or_contribute", "quantize_it"])
def test_a_button_measures_the_chosen_run(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(notebook.FOLDERS, str(root / "own"))
    session = Session(name, monkeypatch)
    assert session.outputs[-1].bundle["text/plain"].startswith("*Press")
    session.names["button"].click()
    assert "image/png" in session.outputs[-1].bundle, session.outputs[-1].bundle
    assert not session.names["button"].disabled


def test_folders_are_those_of_the_project_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notebook.FOLDERS, raising=False)
    monkeypatch.chdir(NOTEBOOKS)
    assert notebook.project() == Path("..")
    assert notebook.project().resolve() == PROJECT
    assert "experiments/results/backcopy-float32" in notebook.folders("ablation")
    assert not any(os.path.isabs(name) for name in notebook.folders("run"))


@pytest.mark.parametrize("name", NAMES)
def test_saved_outputs_are_light_and_read_without_a_kernel(name: str) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    assert path.stat().st_size <= LARGEST
    assert not machine_paths(path.read_text())
    outputs = [output for cell in saved.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert len(figures) + len(tables) >= 2
    assert all("text/plain" in output.data for output in outputs if "data" in output)
