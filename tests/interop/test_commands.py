"""`sinks import` writes a run folder that every other command understands; `sinks export` turns one back."""

from pathlib import Path

import pytest
import torch

from sinks.cli import main
from sinks.record import RunFolder
from sinks.runs import load_run
from tests.interop.shapes import assert_same_logits, tiny
from tests.interop.test_export import opened

SMALL = (
    *("--data=Backcopy", "--data.context_length=12", "--data.batch_size=2", "--data.validation_rows=4"),
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--progress.enabled=false"),
)
VOCABULARY = 36  # of Backcopy


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint in `model` and the run folder imported from it in `run`."""
    folder = tmp_path_factory.mktemp("imported")
    tiny("gpt-oss", vocab_size=VOCABULARY).save_pretrained(folder / "model")
    assert main(["import", str(folder / "model"), *SMALL, "--run.dir", str(folder / "run")]) == 0
    return folder


@torch.no_grad()
def test_the_run_loads_and_exports(imported: Path, tmp_path: Path) -> None:
    tokens = torch.randint(0, VOCABULARY, (2, 12))
    expected = opened(imported / "model")(tokens).logits
    run = load_run(imported / "run")
    assert_same_logits(run.model(tokens), expected)
    assert run.folder.provenance()["imported_from"] == str((imported / "model").resolve())
    assert main(["export", str(imported / "run"), str(tmp_path / "out")]) == 0
    assert torch.equal(opened(tmp_path / "out")(tokens).logits, expected)


def test_the_run_validates(imported: Path) -> None:
    folder = imported / "run"
    assert main(["validate", "-c", str(folder / "config.yaml"), "--run.dir", str(folder)]) == 0
    assert len(list((folder / "validation").glob("step00000000-*.json"))) == 1


def test_training_starts_from_the_imported_weights_with_options_of_its_own(imported: Path, tmp_path: Path) -> None:
    """At a learning rate far below float32's resolution, training leaves every weight as it was imported."""
    checkpoint = imported / "run" / "checkpoints" / "step00000000.ckpt"
    fit = ["fit", "-c", str(imported / "run" / "config.yaml"), "--ckpt_path", str(checkpoint)]
    options = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--model.optimization.lr=1e-30"]
    assert main([*fit, *options, "--run.dir", str(tmp_path / "new")]) == 0
    found, imported_weights = (
        load_run(tmp_path / "new").model.state_dict(),
        load_run(imported / "run").model.state_dict(),
    )
    assert all(torch.equal(found[name], value) for name, value in imported_weights.items())
    assert RunFolder(tmp_path / "new").summary()["steps"] == 2


def test_mistakes_are_one_line_and_write_nothing(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = {
        "the model to import is missing": [],
        "holds a run: choose another": [str(imported / "model"), *SMALL, "--run.dir", str(imported / "run")],
        "has no config.json": [str(tmp_path), *SMALL, "--run.dir", str(tmp_path / "new")],
    }
    tiny("llama", vocab_size=40).save_pretrained(tmp_path / "other")
    other = [str(tmp_path / "other"), *SMALL, "--run.dir", str(tmp_path / "new")]
    mistakes["data.vocab_size is 36, but the model has 40 token ids"] = other
    mistakes["of another architecture|is missing|has no place|config.json describes"] = [
        str(imported / "model"), *SMALL, "--model.architecture.d_model=16", "--run.dir", str(tmp_path / "new")
    ]  # fmt: skip
    for words, arguments in mistakes.items():
        capsys.readouterr()
        assert main(["import", *arguments]) == 2
        line = capsys.readouterr().err.strip()
        assert any(word in line for word in words.split("|")), (words, line)
        assert "\n" not in line
    assert not (tmp_path / "new").exists()
