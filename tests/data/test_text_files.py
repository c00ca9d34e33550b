"""Which files are read: links are followed, each file is read once, and what cannot be read is named."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks.cli import main
from sinks.data.corpus import find_corpus
from sinks.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one text, and a folder with two that is elsewhere."""
    for name in ("corpus/a.txt", "elsewhere/b.txt", "elsewhere/sub/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    return tmp_path / "corpus"


def names(*sources: Path) -> list[str]:
    return [file.name for file in find_corpus([str(source) for source in sources]).files]


def error_of(*sources: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_corpus([str(source) for source in sources]).fingerprint()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_links_to_folders_and_files_are_followed(root):
    (root / "linked").symlink_to("../elsewhere")
    (root / "own.txt").symlink_to("../elsewhere/b.txt")
    corpus = find_corpus([str(root)])
    assert [str(file.relative_to(root)) for file in corpus.files] == ["a.txt", "own.txt", "linked/sub/c.txt"]
    assert [text for _, text in corpus.documents()] == [
        "text of corpus/a.txt",
        "text of elsewhere/b.txt",
        "text of elsewhere/sub/c.txt",
    ]


def test_loops_of_links_end(root):
    (root / "itself").symlink_to(".")
    (root / "above").symlink_to("..")
    (root.parent / "elsewhere" / "back").symlink_to("../corpus")
    assert names(root) == ["a.txt", "b.txt", "c.txt"]


def test_a_file_that_is_reached_twice_is_read_once(root):
    (root / "z.txt").symlink_to("a.txt")
    assert names(root, root / "a.txt", root) == ["a.txt"]
    (root / "copy.txt").write_bytes((root / "a.txt").read_bytes())
    assert names(root) == ["a.txt", "copy.txt"]


@pytest.mark.parametrize("name", ["gone.txt", "gone"])
@pytest.mark.parametrize("target", ["nowhere", "{name}"], ids=["nothing", "itself"])
def test_a_link_to_nothing_is_named(root, name, target):
    (root / name).symlink_to(target.format(name=name))
    message = (
        f"{root / name} is a link to {target.format(name=name)}, which cannot be found: mend the link or remove it"
    )
    assert error_of(root) == error_of(root / name) == message


def test_a_pipe_or_socket_is_named(root, monkeypatch):
    os.mkfifo(root / "b.txt")
    expected = "b.txt is a pipe, socket or device, but a regular file is needed: copy it, or leave it out"
    assert error_of(root).endswith(expected)
    assert error_of(root / "b.txt").endswith(expected)
    (root / "b.txt").unlink()
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("b.txt")
        assert error_of(root).endswith(expected)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder with a text, as a user who is not root: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inner").mkdir()
        (folder / "a.txt").write_text("one")
        (folder / "inner" / "b.txt").write_text("two")
        user = os.geteuid()
        if user == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("name", ["a.txt", "inner", "inner/b.txt"])
def test_what_may_not_be_read_is_named(unprivileged, name):
    (unprivileged / name).chmod(0)
    try:
        expected = f"{unprivileged / name} cannot be read (Permission denied): make it readable, or leave it out"
        assert error_of(unprivileged) == expected
    finally:
        (unprivileged / name).chmod(0o700)


@pytest.mark.parametrize("source", ["", "x" * 5000, "a\0b"])
def test_a_path_that_cannot_be(source):
    with pytest.raises(UserError):
        find_corpus([source])


def test_every_skipped_file_is_counted_by_reason(root, capsys, tmp_path):
    (root / "empty.txt").touch()
    (root / "b.csv").write_text("x")
    (root / "README").write_text("x")
    (root / "b.jsonl").write_text('{"text": "two"}\n{"text": null}\n')
    arguments = ["prepare", str(root), "--output", str(tmp_path / "out"), "--processes", "1", "--vocab_size", "300"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == f"  sources     {root}: 2 files, 3 skipped (2 other suffix, 1 empty)"
    assert printed[2] == "  documents   one is a line of a .jsonl file, text file; 1 without text dropped"


def test_a_name_that_is_no_text_or_too_long(root, capfd, tmp_path):
    file = root / (os.fsdecode(b"caf\xe9" + b"\n" + b"x" * 200) + ".txt")
    file.write_text("one\n\n" + "two " * 5000)
    arguments = ["prepare", str(file), "--output", str(tmp_path / "out"), "--processes", "1", "--vocab_size", "300"]
    assert main(arguments) == 0
    assert "caf\\xe9" in capfd.readouterr().out
    file.write_bytes(b"\xff")
    assert main(arguments) == 2
    assert capfd.readouterr().err.count("\n") == 1
