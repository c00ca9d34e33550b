"""The notebook runs headless against a tiny real run, and its sliders do what they say."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinks.cli import main
from sinks.data import backcopy
from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.report import figures
from tests.report.synthetic import Levels, write_run

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipywidgets")

PROJECT = Path(__file__).parents[2]
NOTEBOOK = PROJECT / "notebooks/watch_a_sink_form.ipynb"
MOVE = """step.value = 0
text.value = "a set."
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Ten steps of the baseline, trained by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "baseline/seed0"
    parts = ["variants/baseline", "models/backcopy", "data/backcopy", "trainers/cpu"]
    configs = [word for part in parts for word in ("-c", str(PROJECT / f"experiments/{part}.yaml"))]
    options = {"run.dir": folder, "trainer.max_steps": 10, "trainer.val_check_interval": 5, "statistics.interval": 5}
    assert main(["fit", *configs, *(f"--{key}={value}" for key, value in options.items())]) == 0
    return RunFolder(folder)


def pictures(notebook: Any) -> list[bytes]:
    """What the widgets' outputs hold at the end."""
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    outputs = [output for state in states for output in state["state"].get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs if "data" in output]


def test_it_runs_headless_and_its_controls_redraw(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKS_RUN", str(run.path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(MOVE))
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    first, curves, attention = pictures(notebook)
    statistics = run.statistics("train")
    assert first == figures.to_png(figures.first_token_map(statistics, 0), dpi=90)
    assert curves == figures.to_png(figures.sink_curves(run, int(statistics.steps[0]), "train"), dpi=90)
    assert attention.startswith(b"\x89PNG")


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_text_and_token_ids() -> None:
    ids = backcopy.encode("The (te.)\n")
    assert ids[0] == backcopy.BOS
    assert backcopy.decode(ids) == "the (te.)\n"
    assert max(ids) <= len(backcopy.CHARACTERS)
    assert backcopy.encode("") == [backcopy.BOS]
    with pytest.raises(UserError, match="'!7'"):
        backcopy.encode("7!")


def test_attention_map_hides_the_future_and_refuses_what_does_not_fit() -> None:
    weights = np.tril(np.full((4, 4), 0.25))
    image = figures.attention_map_figure(weights, list("abcd"), "layer 0").axes[0].images[0].get_array()
    assert np.array_equal(np.ma.getmaskarray(image), np.triu(np.ones((4, 4), dtype=bool), 1))
    with pytest.raises(UserError, match="T labels"):
        figures.attention_map_figure(weights, ["a"])


@pytest.mark.parametrize("shape", [{"layers": 2, "heads": 1}, {"layers": 28, "heads": 16}])
def test_maps_of_any_size(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "baseline/seed0", "baseline", 0, Levels(), **shape)
    statistics = folder.statistics("train")
    image = figures.first_token_map(statistics, 3).axes[0].images[0].get_array()
    assert np.array_equal(image, statistics.arrays["attention/first_token_mass"][3])
