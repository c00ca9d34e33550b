"""Damaged data, before a run and during it: one line, exit code 2, and nothing half-written left."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sinks.data.prepare
from sinks.cli import main
from sinks.record import RunFolder
from tests.cli.small import SMALL
from tests.faults.processes import callbacks

CHUNK, INDEX = "train/chunk-0-1.bin", "train/index.json"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of several small chunks."""
    root = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for i in range(40):
        words = " ".join(rng.choice(["attention", "sink", "norm", "gate"]) for _ in range(50))
        (root / f"{i:02d}.txt").write_text(f"File {i}. {words}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks.data.prepare, "CHUNK_BYTES", 1024)
        return sinks.data.prepare.prepare_text(
            [str(root)], tmp_path_factory.mktemp("prepared"), vocab_size=300, validation_share=0.2, processes=1
        )


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data")


def arguments(folder: Path, run: Path, *more: str) -> list[str]:
    data = ["--data", "Text", "--data.sources", f'["{folder}"]', "--data.vocab_size", "300", "--data.window", "1"]
    return ["fit", *SMALL, *data, "--run.dir", str(run), *more]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-40:] = bytes(byte ^ 0xFF for byte in data[-40:])
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def break_json(file: Path) -> None:
    file.write_text(file.read_text()[:40])


def list_fewer(file: Path) -> None:
    index = json.loads(file.read_text())
    index["chunks"].pop()
    file.write_text(json.dumps(index))


def list_twice(file: Path) -> None:
    index = json.loads(file.read_text())
    index["chunks"].append(index["chunks"][0])
    file.write_text(json.dumps(index))


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "flipped bytes": (CHUNK, flip, f"{CHUNK} is damaged: its sha256 is "),
    "truncated chunk": (CHUNK, truncate, f"{CHUNK} has 50 bytes, but must have "),
    "missing chunk": (CHUNK, Path.unlink, f"{CHUNK} is missing, though manifest.json lists it"),
    "missing validation chunk": ("val/chunk-0-0.bin", Path.unlink, "val/chunk-0-0.bin is missing"),
    "broken index": (INDEX, break_json, f"{INDEX} has 40 bytes, but must have "),
    "missing index": (INDEX, Path.unlink, f"{INDEX} is missing, though manifest.json lists it"),
    "missing tokenizer": ("tokenizer.json", Path.unlink, "tokenizer.json is missing, though manifest.json lists it"),
    "broken manifest": ("manifest.json", break_json, "manifest.json cannot be read ("),
    "missing manifest": ("manifest.json", Path.unlink, " has no manifest.json: "),
}
# Chunks that litdata.optimize wrote have no checksums; the sizes in their index are checked.
PLAIN = {
    "truncated chunk": (CHUNK, truncate, f"{CHUNK} has 50 bytes, but must have "),
    "missing chunk": (CHUNK, Path.unlink, f"{CHUNK} is missing, though index.json lists it"),
    "broken index": (INDEX, break_json, f"{INDEX} cannot be read ("),
    "missing index": (INDEX, Path.unlink, "train has no index.json: "),
    "unlisted chunk": (INDEX, list_fewer, ".bin is there, but index.json does not list it: "),
    "chunk listed twice": (INDEX, list_twice, "is listed twice"),
}


@pytest.mark.parametrize(("kind", "what"), [("prepared", w) for w in DAMAGE] + [("plain", w) for w in PLAIN])
def test_damage_is_reported_before_a_run_folder_is_made(
    kind: str, what: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage, expected = (PLAIN if kind == "plain" else DAMAGE)[what]
    if kind == "plain":
        (folder / "manifest.json").unlink()
        (folder / "tokenizer.json").unlink()
    damage(folder / name)
    assert main(arguments(folder, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith("sinks: error: ")
    assert f"{folder}" in error
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_chunk_that_vanishes_during_training_is_reported_and_the_run_resumes(
    workers: str, folder: Path, prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = ["--data.num_workers", workers, "--trainer.max_steps", "30", "--trainer.val_check_interval", "30"]
    vanishing = ("Delete", {"pattern": "chunk-*", "folder": str(folder / "train"), "step": 2})
    assert main([*arguments(folder, run, *more), *callbacks(run, vanishing)]) == 2
    error = capfd.readouterr().err
    assert "bin is missing, though index.json lists it" in error
    assert error.count("\n") == 1
    assert not RunFolder(run).finished
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    assert main([*arguments(folder, run, *more), *callbacks(run)]) == 0
    assert RunFolder(run).series("train/loss")[0].tolist() == list(range(2, 31, 2))
