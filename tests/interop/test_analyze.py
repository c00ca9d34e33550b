"""`sinks analyze` on tiny models: its run folders, and what it rejects."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from sinks.cli import main
from sinks.cli.analyze import collected
from sinks.errors import UserError
from sinks.interop.load import load_pretrained
from sinks.interop.rows import read_rows
from sinks.record import RunFolder, find_runs
from sinks.report import load_ablation
from sinks.stats.functional import uniform_first_token_mass
from tests.cli.test_mistakes import one_line
from tests.interop import tiny

SIZES = ["--rows=3", "--tokens=12", "--batch_size=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and two texts."""
    folder = tmp_path_factory.mktemp("analyze")
    tiny.save(folder / "tiny")
    tiny.save(folder / "wide", intermediate_size=64)
    (folder / "words.txt").write_text(tiny.TEXT)
    (folder / "reversed.txt").write_text(tiny.TEXT[::-1])
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> RunFolder:
    assert (
        main(["analyze", str(place / "tiny"), f"--text={place / 'words.txt'}", *SIZES, f"--out={place / 'out'}"]) == 0
    )
    return RunFolder(place / "out/tiny/words-bos-auto")


def test_the_folder_is_that_of_a_finished_run(run: RunFolder, place: Path) -> None:
    assert find_runs(place / "out")[0].path == run.path
    assert run.finished
    assert (place / "out/model.html").is_file()
    assert run.config()["rows"] == 3
    assert run.provenance()["config_fingerprint"] == run.summary()["config_fingerprint"]
    assert run.provenance()["versions"]["transformers"]
    (line,) = run.metrics()
    assert line["analysis/attention/first_token_mass"] == run.summary()["attention/first_token_mass"]
    statistics = run.statistics("analysis")
    assert statistics.arrays["attention/first_token_mass"].shape == (1, 4, 4)
    assert len(statistics.sites["residual"]) == 9


def test_the_numbers_are_those_of_a_plain_computation(run: RunFolder, place: Path) -> None:
    """transformers' eager attention in float64."""
    pretrained = load_pretrained(str(place / "tiny"), dtype=torch.float64)
    pretrained.model.set_attn_implementation("eager")
    tokens = read_rows(pretrained, str(place / "words.txt"), 3, 12).tokens
    with torch.no_grad():
        out = pretrained.model(tokens, output_attentions=True, output_hidden_states=True)
    analysis, summary = run.analysis(), run.summary()
    loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert analysis["text"]["loss"] == pytest.approx(loss, rel=1e-5)
    mass = torch.stack(out.attentions)[..., 1:, 0].mean().item()
    assert summary["attention/first_token_mass"] == pytest.approx(mass, rel=1e-5)
    largest = torch.stack(out.hidden_states[:-1])[:, :, 0].abs().amax((1, 2))
    found = run.statistics("analysis").arrays["residual/max_abs"][0, 0:-1:2, 0]
    assert np.allclose(found, largest, rtol=1e-5)
    assert "residual/rescale" in summary, "sink dimensions were not chosen before"
    assert analysis["model"] == {
        "name": str(place / "tiny"),
        "layers": 4,
        "heads": 4,
        "width": 32,
        "parameters": sum(p.numel() for p in pretrained.model.parameters()),
    }


def test_uniform_attention_gives_the_mass_that_is_stated(run: RunFolder) -> None:
    uniform = torch.ones(12, 12).tril()
    mass = (uniform / uniform.sum(1, keepdim=True))[1:, 0].mean().item()
    assert run.summary()["attention/first_token_mass_uniform"] == pytest.approx(mass)
    assert np.isnan(uniform_first_token_mass(1))


def test_a_finished_analysis_is_not_made_again_and_another_is_rejected(
    run: RunFolder, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    command = ["analyze", str(place / "tiny"), f"--text={place / 'words.txt'}", f"--out={place / 'out'}"]
    assert main([*command, *SIZES]) == 0
    assert "words-bos-auto (unchanged)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert "holds a run of another configuration" in one_line([*command, *SIZES, "--tokens=10"], capsys)
    assert "choose another --out" in one_line([*command, *SIZES, "--dtype=bfloat16"], capsys)


def test_an_interrupted_analysis_starts_again(run: RunFolder, place: Path, tmp_path: Path) -> None:
    again = RunFolder(shutil.copytree(run.path, tmp_path / "tiny/words-bos-auto"))
    (again.path / "summary.json").unlink()
    command = ["analyze", str(place / "tiny"), f"--text={place / 'words.txt'}", f"--out={tmp_path}"]
    assert main([*command, *SIZES]) == 0
    assert again.metrics() == run.metrics()
    assert len(again.statistics("analysis").steps) == 1


def test_a_report_of_training_runs_leaves_analyses_out(run: RunFolder, place: Path) -> None:
    with pytest.raises(UserError, match="contains no run"):
        load_ablation(place / "out")


def test_a_report_of_analyses_is_their_page(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "runs/tiny/words")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]) == 0
    assert "words" in (tmp_path / "page/model.html").read_text()


def test_several_models_texts_and_bos_give_a_folder_each_and_one_page(place: Path, tmp_path: Path) -> None:
    texts = [part for name in ("words", "reversed") for part in ("--text", str(place / f"{name}.txt"))]
    models = [str(place / "tiny"), str(place / "wide")]
    assert main(["analyze", *models, *texts, "--bos=none", "--bos=7", *SIZES, f"--out={tmp_path}"]) == 0
    found = {str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)}
    assert found == {f"{m}/{t}-bos-{b}" for m in ("tiny", "wide") for t in ("words", "reversed") for b in ("none", "7")}
    assert [path.name for path in tmp_path.rglob("*.html")] == ["model.html"]
    losses = [run.summary()["loss"] for run in find_runs(tmp_path)]
    assert len(set(losses)) == 8


def test_mistakes_are_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text, out = str(place / "tiny"), f"--text={place / 'words.txt'}", f"--out={tmp_path / 'out'}"
    for arguments, expected in (
        ([], "what is to be analyzed is missing"),
        ([model, "--text=nowhere.txt"], "nowhere.txt is neither a file nor a folder"),
        ([model, text, "--tokens=100000"], "but a row has 100000"),
        ([model, text, "--bos=many"], "bos is 'many'"),
        ([model, text, "--device=abacus"], "device is 'abacus', which cannot be used"),
        ([model, text, "--dtype=int8"], "dtype"),
        ([model, text, "--batch_size=0"], "batch_size is 0"),
        ([model, model, text], "two analyses would be written to"),
        ([str(tmp_path / "none"), text], "is no model"),
    ):
        assert expected in one_line(["analyze", *arguments, out], capsys)
    assert not (tmp_path / "out").exists()


def test_without_transformers_the_command_says_what_to_install(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "run pip install 'sinks[hf]'" in one_line(["analyze", str(place / "tiny"), f"--out={tmp_path}"], capsys)


def test_options_that_are_given_twice_become_a_list() -> None:
    given = ["a", "--text", "x", "--rows=2", "--text=y, z", "--bos=1"]
    assert collected(given, ("text", "bos")) == ["a", "--rows=2", '--text=["x", "y, z"]', '--bos=["1"]']
