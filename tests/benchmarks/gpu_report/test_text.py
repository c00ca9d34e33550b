"""The installed text: its files and their tokens."""

import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_report import text
from sinks.data.tokenizer import TextTokenizer


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of a few files, some of which must be skipped."""
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    packages.mkdir(parents=True)
    for i in range(120):
        (packages / f"module{i:03}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n" * (i % 7 + 1))
    (library / "copy.py").write_text((packages / "module001.py").read_text())
    (library / "NOTES.md").write_text("# Notes\n")
    (library / "latin.txt").write_bytes(b"caf\xe9")
    (library / "empty.rst").write_text(" \n")
    (library / "code.c").write_text("int main;")
    paths = {"stdlib": str(library), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return tmp_path


def test_installed_text_is_every_text_once(installed: Path) -> None:
    corpus = text.find()
    assert text.roots() == [installed / "lib"]
    assert len(corpus.files) == 121
    assert sum(corpus.skipped.values()) == 3
    assert {file.suffix for file in corpus.files} == {".py", ".md"}


def test_tokens_do_not_depend_on_the_number_of_processes(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "GROUP_BYTES", 2000)
    folders = [text.prepare(installed / str(n), 300, processes=n) for n in (1, 2)]
    for name in ("train.bin", "val.bin", "text.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    content = json.loads((folders[0] / "text.json").read_text())
    ids = np.fromfile(folders[0] / "train.bin", np.uint16)
    assert len(ids) == content["train_tokens"]
    tokenizer = TextTokenizer.load(folders[0])
    written = [
        tokenizer.decode(np.fromfile(folders[0] / f"{split}.bin", np.uint16).tolist()) for split in ("train", "val")
    ]
    texts = "".join(file.read_text() for file in text.find().files)
    assert sorted("".join(written).splitlines()) == sorted(texts.splitlines())

    data = text.InstalledText(folders[0], context_length=10, batch_size=4, validation_rows=5)
    rows = data.train_set()
    assert len(rows) == (len(ids) - 1) // 10  # type: ignore[arg-type]
    assert rows[3].tolist() == ids[30:41].tolist()
    assert sorted(data.train_order()(i) for i in range(len(rows))) == list(range(len(rows)))  # type: ignore[arg-type]
    assert next(iter(data.train_dataloader())).shape == (4, 11)


def test_only_new_text_is_prepared(installed: Path) -> None:
    folder = text.prepare(installed / "out", 300, processes=1)
    before = (folder / "train.bin").stat().st_mtime_ns
    assert text.prepare(installed / "out", 300, processes=1) == folder
    assert (folder / "train.bin").stat().st_mtime_ns == before
    (folder / "val.bin").unlink()
    assert text.prepare(installed / "out", 300, processes=1) == folder
    assert (folder / "val.bin").is_file()
    (installed / "lib" / "NOTES.md").write_text("# Other notes\n")
    assert text.prepare(installed / "out", 300, processes=1) != folder
