"""`sinks probe` on a run, on a transformers model, resumed, and on what cannot be probed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaForCausalLM

from sinks.cli import main
from sinks.probes.scorer import Scorer
from tests.interop import tiny

SHORT = ("--rows=3", "--calibration_rows=2", "--batch_size=2", "--device=cpu", "--progress=false")
RESIDUAL = ("--side=residual", "--dimensions=[3]", "--on=all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a checkpoint in `model`, with two sink dimensions, a run in `run`, and a text."""
    folder = tmp_path_factory.mktemp("probe")
    tiny.save(folder / "model")
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, [3, 7]] = 60.0
    model.save_pretrained(folder / "model")
    (folder / "text.txt").write_text(tiny.TEXT)
    data = ["--data=Backcopy", "--data.context_length=12", "--data.batch_size=2", "--data.validation_rows=6"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1", "--progress.enabled=false"]
    assert main(["fit", "--model=Gated", *data, *trainer, "--run.dir", str(folder / "run")]) == 0
    return folder


def result(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("*.json")
    return json.loads(file.read_text())


def test_a_run_is_probed_into_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", str(folder / "run"), "--dimensions=[3]", "--sinks=first", *SHORT]
    assert main(command) == 0
    out = capsys.readouterr().out
    found = result(folder / "run/probes")
    assert found["provenance"]["versions"]["torch"]
    assert found["units"] == "windows"
    assert len(found["residual"]["edits"]) == 7 * 2 * 2
    assert len(found["attention"]["edits"]) == 5 * 4 + 2  # with the gate at its mean and at one
    assert set(found["residual"]["roles"]) == {"all|ordinary", "all|all"}
    for side in ("residual", "attention"):
        assert all(len(each["loss_by_position"]) == 8 for each in found[side]["edits"].values())
        assert any(each["change"]["mean"] != 0 for each in found[side]["edits"].values())
    change = found["residual"]["edits"]["all|all|direct|sink"]["change"]
    printed = re.search(r"all\|all\|direct +(\S+) \[(\S+), (\S+)\]", out)
    assert printed is not None
    assert [float(number) for number in printed.groups()] == [
        round(change[name], 4) for name in ("mean", "low", "high")
    ]
    assert "role of all|first: " in out


def test_a_pretrained_model_is_probed_site_by_site(folder: Path, tmp_path: Path) -> None:
    text = ["--text", str(folder / "text.txt"), "--tokens=12"]
    sites = ["--side=residual", "--where=each", "--where=attention", "--from_layer=2", "--edit=direct", "--on=later"]
    sites += ["--threshold=12"]
    assert main(["probe", str(folder / "model"), *text, *sites, *SHORT, "--out", str(tmp_path)]) == 0
    found = result(tmp_path)["residual"]
    sites_with = {name for name, site in found["sites"].items() if site["dimensions"]["sink"]}
    assert 0 < len(sites_with) < len(found["sites"]) == 9
    assert {name for name, site in found["sites"].items() if site["score"] >= 12} == sites_with
    each = {key.partition("|")[0]: value for key, value in found["edits"].items() if key.endswith(("sink", "none"))}
    assert set(each) == {*list(found["sites"])[4:], "attention from 2"}
    assert {name for name, value in each.items() if value is not None} == {
        *list(sites_with & set(each)),
        "attention from 2",
    }


def test_edits_that_are_asked_for_alone_and_units_that_are_documents(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / f"text/{number}.txt").write_text(tiny.TEXT[number * 50 : number * 50 + 60])
    sources = [f"--data.sources=[{tmp_path / 'text'}]", f"--data.folder={tmp_path / 'data'}"]
    sizes = ["--data.vocab_size=300", "--data.context_length=24", "--data.batch_size=2", "--data.validation_share=0.5"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1", "--progress.enabled=false"]
    command = ["fit", "--model=Baseline", "--data=Text", *sources, *sizes, *trainer]
    assert main([*command, "--run.dir", str(tmp_path / "run")]) == 0
    asked = ["--edit=masked", "--sinks=first", "--layers=each", "--from_layer=1", "--controls=0"]
    assert main(["probe", str(tmp_path / "run"), *asked, *SHORT]) == 0
    found = result(tmp_path / "run/probes")
    assert "residual" not in found
    assert set(found["attention"]["edits"]) == {"blocks.1.attention|first|masked|sink"}
    assert found["units"] == "documents"
    assert len(found["attention"]["edits"]["blocks.1.attention|first|masked|sink"]["sums"]) > 3


def test_an_interrupted_probe_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["probe", str(folder / "run"), *RESIDUAL, *SHORT, "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    losses, calls = Scorer.losses, [0]

    def interrupted(self: Scorer, start: int = 0) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return losses(self, start)

    monkeypatch.setattr(Scorer, "losses", interrupted)
    assert main([*command, str(tmp_path / "cut")]) == 130
    assert len(result(tmp_path / "cut")["residual"]["edits"]) == 3
    assert main([*command, str(tmp_path / "cut")]) == 0
    assert calls[0] == 4 + 14 - 3
    whole, cut = result(tmp_path / "whole"), result(tmp_path / "cut")
    assert cut["residual"] == whole["residual"]
    assert main([*command, str(tmp_path / "cut")]) == 0
    assert calls[0] == 4 + 14 - 3
    # Another question on the same rows goes into the same file.
    assert main([*command[:2], *RESIDUAL[:2], "--on=first", *SHORT, "--out", str(tmp_path / "cut")]) == 0
    assert set(whole["residual"]["edits"]) < set(result(tmp_path / "cut")["residual"]["edits"])


def test_where_no_site_has_a_sink_dimension_the_other_side_is_probed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["probe", str(folder / "run"), "--threshold=1e6", "--edit=mean", "--edit=masked", "--sinks=first", *SHORT]
    assert main([*command, "--out", str(tmp_path)]) == 0
    content = result(tmp_path)
    assert content["residual"]["edits"] == {"all|none": None}
    assert "all|first|masked|sink" in content["attention"]["edits"]
    assert re.search(r"^  all +none$", capsys.readouterr().out, re.MULTILINE)


def test_several_are_probed_in_one_command_and_a_broken_one_ends_no_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for name in ("a", "b", "c"):
        shutil.copytree(folder / "run", runs / name, symlinks=True, ignore=shutil.ignore_patterns("probes"))
    shutil.rmtree(runs / "b/checkpoints")
    (runs / "c/summary.json").unlink()  # not finished: a folder does not stand for it
    command = ["--side=attention", "--sinks=first", "--edit=masked", "--controls=0", *SHORT]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["probe", str(runs / "b"), str(runs / "a"), str(runs / "c"), *command])
    out, error = capsys.readouterr()
    assert error.startswith(f"sinks: error: {runs / 'b'} has no complete checkpoint")
    assert error.count("\n") == 1
    lines = out.splitlines()
    assert [line[:6] for line in lines] == ["2 of 3", "3 of 3"]
    assert {name: "all|first|masked|sink" in result(runs / name / "probes")["attention"]["edits"] for name in "ac"}
    files = {file: file.stat().st_mtime_ns for file in runs.rglob("probes/*.json")}
    with pytest.raises(SystemExit, match="2"):
        main(["probe", str(runs), *command])
    out, error = capsys.readouterr()
    assert out == f"1 of 2  {next(iter((runs / 'a/probes').iterdir()))} (unchanged)\n"
    assert set(files) == set(runs.rglob("probes/*.json"))


def test_a_folder_without_a_finished_run_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    shutil.copy(folder / "run/config.yaml", tmp_path / "runs/a")
    capsys.readouterr()
    assert main(["probe", str(tmp_path / "runs"), *SHORT]) == 2
    assert "runs has 1 runs, but none is finished: finish one, or name it itself" in capsys.readouterr().err


def test_a_series_of_checkpoints_is_probed_with_the_sink_dimensions_of_the_last_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dimension that is large in the last checkpoint alone is the one that is edited in all."""
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run, symlinks=True, ignore=shutil.ignore_patterns("probes"))
    last = run / "checkpoints/step00000001.ckpt"
    content = torch.load(last, weights_only=False)
    shutil.copy(last, run / "checkpoints/step00000003.ckpt")
    embedding = next(value for name, value in content["state_dict"].items() if "embedding" in name)
    embedding[:, 5] = 60.0
    torch.save(content, run / "checkpoints/step00000007.ckpt")
    command = ["probe", str(run), "--checkpoint=all", "--side=residual", "--edit=direct", "--on=all", *SHORT]
    capsys.readouterr()
    assert main(command) == 0
    files = {json.loads(file.read_text())["step"]: file for file in (run / "probes").iterdir()}
    assert sorted(files) == [1, 3, 7]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == ["step 1", "step 3", "step 7"]
    found = {step: json.loads(file.read_text())["residual"] for step, file in files.items()}
    chosen = {
        step: {name: site["dimensions"]["sink"] for name, site in each["sites"].items()} for step, each in found.items()
    }
    assert chosen[1] == chosen[3] == chosen[7]
    assert chosen[7]["blocks.0.attention.norm"] == [5]
    below = [name for name, site in found[7]["sites"].items() if site["score"] < 10]
    assert all(len(chosen[7][name]) == 1 for name in below)
    said = "below the threshold of 10, where the largest dimension counts: " + ", ".join(below)
    assert [line for line in lines if line.startswith("below")] == ([said] if below else [])
    assert found[1]["sites"]["blocks.0.attention.norm"]["score"] < 10
    assert found[1]["edits"] == found[3]["edits"] != found[7]["edits"]
    assert main([*command, "--controls=0"]) == 0
    assert {file.name for file in (run / "probes").iterdir()} == {file.name for file in files.values()}


def test_a_series_needs_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["probe", str(folder / "model"), "--checkpoint=all", *SHORT]) == 2
    assert "has no complete checkpoint that names its step: leave --checkpoint out" in capsys.readouterr().err


def test_nothing_to_probe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe"]) == 2
    assert capsys.readouterr().err.startswith("sinks: error: what is to be measured is missing: give a run or a model")


def test_a_damaged_file_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", str(folder / "run"), *RESIDUAL, "--edit=direct", *SHORT, "--out", str(tmp_path)]
    assert main(command) == 0
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:100])
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{file} is damaged" in error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--rows=5",), "has 6 rows, but 5 to score and 2 to calibrate on are wanted"),
        (("--calibration_rows=9",), "has 6 rows, but 3 to score and 9 to calibrate on are wanted"),
        (("--rows=0",), "rows is 0, but must be at least 1"),
        (("--threshold=-1",), "threshold is -1.0, but must be above 0"),
        (("--side=residual", "--where=head"), "head has no sink dimension: the largest score is"),
        (("--side=residual", "--where=mlp"), "'mlp' from layer 0 on is none of"),
        (("--side=attention", "--layers=blocks.9.attention"), "is none of the model's 2 sites: give all"),
        (("--side=attention", "--from_layer=2"), "'all' from layer 2 on is none of"),
        (("--dimensions=[3,3]",), "dimensions is [3, 3], but must be different numbers from 0 to 127"),
        (("--dimensions=[128]",), "dimensions is [128], but must be different numbers from 0 to 127"),
        (("--dimensions=[]",), "dimensions is empty"),
        (("--edit=erase",), "erase"),
        (("--side=residual", "--edit=masked"), "edit is masked, none of the residual side: give direct, "),
        (("--sinks=last",), "last"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: tuple[str, ...], reason: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {argument.partition("=")[0] for argument in arguments}
    short = [option for option in SHORT if option.partition("=")[0] not in names]
    try:
        code = main(["probe", str(folder / "run"), *short, *arguments, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert reason in error
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "provenance.json"):
        (tmp_path / name).write_bytes((folder / "run" / name).read_bytes())
    assert main(["probe", str(tmp_path), *SHORT]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "probes").exists()
