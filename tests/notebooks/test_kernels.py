"""The notebooks whole, each in a kernel of its own, on the recorded runs: as `make notebooks` runs them."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytest.importorskip("nbclient")

from notebooks.execute import LARGEST, execute, lighten, main
from sinks.report import notebook
from tests.notebooks.folders import NAMES, NOTEBOOKS, OWN, PROJECT, make

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What SINKS_RUNS names: recorded ablations, and a trained run and an analysis."""
    root = make(tmp_path_factory.mktemp("runs"))
    return os.pathsep.join(map(str, (PROJECT / "experiments/results", root / "own", root / "model")))


def figures(saved: Any) -> list[str]:
    outputs = [output for cell in saved.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("name", [name for name in NAMES if name != OWN])
def test_it_runs_and_stays_light(name: str, folders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notebook.FOLDERS, folders)
    saved = execute(NOTEBOOKS / f"{name}.ipynb")
    lighten(saved)
    assert figures(saved)
    assert len(nbformat.writes(saved)) < LARGEST
    for output in (output for cell in saved.cells for output in cell.get("outputs", [])):
        assert not output.get("data", {}).get("text/plain", "").startswith(("There is no", "No run", "Nothing"))


def test_its_controls_replace_the_saved_figures(folders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notebook.FOLDERS, folders)
    first = figures(execute(NOTEBOOKS / "watch_a_sink_form.ipynb"))
    moved = figures(execute(NOTEBOOKS / "watch_a_sink_form.ipynb", after='step.value = 0\ntext.value = "a set."'))
    assert len(first) == len(moved) == 3
    assert all(one != other for one, other in zip(first, moved, strict=True))


def test_an_own_variant_is_checked_trained_and_compared(tmp_path: Path) -> None:
    source = (NOTEBOOKS / f"{OWN}.ipynb").read_text()
    (tmp_path / f"{OWN}.ipynb").write_text(source.replace("steps = 400", "steps = 50"))
    assert main([str(tmp_path / f"{OWN}.ipynb")]) == 0
    saved = nbformat.read(tmp_path / f"{OWN}.ipynb", as_version=4)
    assert len(figures(saved)) == 1
    checked, compared = (
        o.data["text/html"] for c in saved.cells for o in c.get("outputs", []) if "text/html" in o.data
    )
    assert "failed" not in checked
    assert checked.count("passed") >= 10
    assert "rectified" in compared
    assert (tmp_path / "runs/own-variant/rectified/seed0/summary.json").is_file()


def test_what_is_too_large_or_names_this_machine_is_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.ipynb"
    cells = [nbformat.v4.new_code_cell("import sys\nprint(sys.prefix, 'x' * 400_000)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert path.read_bytes() == before
    said = capsys.readouterr().err
    assert "names" in said
    assert "but may have 300,000" in said
