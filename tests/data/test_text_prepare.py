"""Preparing a corpus: once, atomically, and the same whatever the number of processes."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sinks.data.prepare
from sinks.cli import main
from sinks.cli.prepare import prepare
from sinks.data.chunks import write_chunks
from sinks.data.document_store import DocumentStore, validation_documents
from sinks.data.manifest import Manifest, verify
from sinks.data.prepare import Preparation, prepare_text
from sinks.data.text import Text
from sinks.data.tokenizer import TextTokenizer
from sinks.errors import UserError

FEW = {"vocab_size": 300, "validation_share": 0.2, "processes": 1}


def hidden_and_visible(output: Path) -> list[str]:
    return sorted(name for name in os.listdir(output) if name != ".lock")


def test_the_manifest_lists_the_contents(prepared, corpus):
    manifest = verify(prepared)
    assert prepared.name == f"{corpus.name}-{manifest.fingerprint[:8]}"
    assert manifest.sources == [str(corpus)]
    assert (manifest.files, manifest.skipped, manifest.unit) == (120, {}, "text file")
    assert manifest.records_without_text == 0
    assert (manifest.vocab_size, manifest.tokenizer_entries, manifest.bos) == (300, 300, "document")
    train, val = manifest.splits["train"], manifest.splits["val"]
    assert train.documents + val.documents == 120
    assert train.bytes + val.bytes == sum(file.stat().st_size for file in corpus.rglob("*.txt"))
    assert train.chunks > 3
    assert sorted(path.split("/")[-1] for path in os.listdir(prepared)) == [
        "manifest.json",
        "tokenizer.json",
        "train",
        "val",
    ]
    on_disk = {str(f.relative_to(prepared)) for f in prepared.rglob("*") if f.is_file()} - {"manifest.json"}
    assert on_disk == set(manifest.records)


def test_preparing_again_changes_nothing(prepared, corpus, output, small_chunks):
    before = {file: file.stat().st_mtime_ns for file in prepared.rglob("*")}
    assert prepare_text([str(corpus)], output, bos="document", **FEW) == prepared
    assert {file: file.stat().st_mtime_ns for file in prepared.rglob("*")} == before


def test_none_and_block_share_a_folder(prepared, prepared_without_bos, corpus, output, small_chunks):
    assert prepared_without_bos != prepared
    assert prepare_text([str(corpus)], output, bos="block", **FEW) == prepared_without_bos
    assert Manifest.read(prepared_without_bos).bos == "none"


def test_every_input_and_setting_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")

    def plan(**changes):
        return Preparation.plan([str(tmp_path / "a.txt")], "out", **changes)

    plans = [plan(), plan(vocab_size=300), plan(bos="none"), plan(validation_share=0.1)]
    (tmp_path / "a.txt").write_text("two", encoding="utf-8")
    plans.append(plan())
    assert len({p.folder for p in plans}) == 5
    assert {str(p.folder).split("-")[0] for p in plans} == {"out/a"}


def test_tokens_do_not_depend_on_the_number_of_processes(prepared_without_bos, corpus, tmp_path, small_chunks):
    again = prepare_text([str(corpus)], tmp_path, bos="none", **FEW)
    by_two, by_one = Manifest.read(prepared_without_bos), Manifest.read(again)
    assert {path.split("-")[1] for path in by_two.records if "chunk" in path} == {"0", "1"}
    assert by_two.content == by_one.content
    assert again.name == prepared_without_bos.name


def test_preparing_leaves_this_process_as_it_was(tmp_path, capfd, small_chunks, monkeypatch):
    (tmp_path / "a.txt").write_text("para. " * 300 + "\n\n" + "graph. " * 600 + "\n\n" + "end", encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    torch.manual_seed(1)
    random.seed(1)
    before = (torch.get_rng_state().tolist(), random.getstate(), dict(os.environ))
    handler, method = signal.getsignal(signal.SIGINT), multiprocessing.get_start_method(allow_none=True)
    prepare_text([str(tmp_path / "a.txt")], tmp_path / "out", **FEW)
    assert (torch.get_rng_state().tolist(), random.getstate(), dict(os.environ)) == before
    assert signal.getsignal(signal.SIGINT) is handler
    assert multiprocessing.get_start_method(allow_none=True) == method
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path / "tmp") == []
    assert len(hidden_and_visible(tmp_path / "out")) == 1


def test_an_interrupted_preparation_is_never_taken_for_complete(corpus, prepared, tmp_path, monkeypatch, small_chunks):
    plan = Preparation.plan([str(corpus)], tmp_path, 300, "document", 0.2)

    def break_off(self, folder):
        assert (folder / "train" / "index.json").is_file()
        raise OSError("disk full")

    monkeypatch.setattr(Manifest, "write", break_off)
    with pytest.raises(UserError, match=r"could not be written \(disk full\): free space"):
        plan.run(1)
    assert hidden_and_visible(tmp_path) == []
    assert not plan.finished
    # One that was killed could not clean up: the next one does.
    killed = tmp_path / f".{plan.folder.name}.12345"
    shutil.copytree(prepared, killed)
    (killed / "manifest.json").unlink()
    assert not plan.finished
    monkeypatch.undo()
    monkeypatch.setattr(sinks.data.prepare, "CHUNK_BYTES", 4096)
    assert verify(plan.run(1)).content == Manifest.read(prepared).content
    assert hidden_and_visible(tmp_path) == [plan.folder.name]


def few_tokens(item: int) -> np.ndarray:
    return np.full(2 + item, item, dtype=np.uint16)


def test_every_input_is_a_chunk_in_order_by_any_number_of_processes(tmp_path):
    counts = []
    write_chunks(few_tokens, {tmp_path / "train": list(range(7))}, 3, tmp_path / "scratch", counts.append)
    index = json.loads((tmp_path / "train" / "index.json").read_text(encoding="utf-8"))
    assert [chunk["dim"] for chunk in index["chunks"]] == [2, 3, 4, 5, 6, 7, 8]
    assert counts[-1] == 7


def fail_on_three(item: int) -> np.ndarray:
    if item == 3:
        raise ValueError("three")
    return np.arange(9, dtype=np.uint16)


def die_on_three(item: int) -> np.ndarray:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.arange(9, dtype=np.uint16)


@pytest.mark.parametrize(
    ("tokens", "error", "expected"),
    [
        (fail_on_three, RuntimeError, "ValueError: three"),
        (die_on_three, UserError, "a process was killed while it tokenized .*: give fewer processes"),
    ],
)
def test_a_worker_that_fails_or_dies_is_an_error(tokens, error, expected, tmp_path):
    with pytest.raises(error, match=expected):
        write_chunks(tokens, {tmp_path / "train": list(range(6))}, 2, tmp_path / "scratch", lambda done: None)


def damage(folder: Path, what: str) -> Path:
    chunk = folder / "train" / "chunk-0-1.bin"
    if what == "zeroed":
        data = bytearray(chunk.read_bytes())
        data[20:4020] = bytes(4000)[: len(data) - 20]
        chunk.write_bytes(data)
    elif what == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:100])
    elif what == "missing":
        chunk.unlink()
    elif what == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("{}", encoding="utf-8")
    return chunk


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("zeroed", "{chunk} is damaged: its sha256 is "),
        ("truncated", "{chunk} has 100 bytes, but must have "),
        ("missing", "{chunk} is missing, though manifest.json lists it"),
        ("no manifest", "{folder} has no manifest.json"),
        ("empty manifest", "{folder}/manifest.json cannot be read (KeyError: 'fingerprint')"),
    ],
)
def test_damage_is_named(prepared, tmp_path, what, expected):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    verify(folder)
    chunk = damage(folder, what)
    with pytest.raises(UserError) as caught:
        verify(folder)
    assert str(caught.value).startswith(expected.format(chunk=chunk, folder=folder))
    assert str(caught.value).endswith(f": delete {folder} and prepare it again")


@pytest.mark.parametrize("share", [0, 1, -0.1, 2.0])
def test_validation_share_outside_0_and_1(share):
    with pytest.raises(UserError, match=f"validation_share is {share}, but must be between 0 and 1: give"):
        Preparation.plan(None, "out", validation_share=share)


def test_vocabulary_below_257():
    with pytest.raises(UserError, match="vocab_size is 100, but byte-level BPE needs at least 257"):
        Preparation.plan(None, "out", vocab_size=100)


@pytest.mark.parametrize(("text", "count"), [("same\n", "1 different document,"), (" \n", "0 different documents,")])
def test_a_corpus_that_cannot_be_split(tmp_path, text, count):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"the corpus has {count} but train and validation need one each: give more"):
        prepare_text([str(tmp_path / "a.txt")], tmp_path / "out", **FEW)
    assert hidden_and_visible(tmp_path / "out") == []


# -- what cannot be done is one line, and leaves nothing half-written ------------------------------------------


def command(source: Path, output: Path | str, *more: str) -> list[str]:
    return ["prepare", str(source), "--output", str(output), "--vocab_size", "257", "--processes", "1", *more]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("sinks: error: ")
    assert error.count("\n") == 1
    return error.removeprefix("sinks: error: ").rstrip()


@pytest.mark.parametrize("processes", ["0", "-2"])
def test_processes_below_one(corpus, tmp_path, capsys, processes):
    assert error_of(capsys, *command(corpus, tmp_path / "out", "--processes", processes)) == (
        f"processes is {processes}, but must be at least 1: leave it out for one for each core"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("output", ["file", "file/below", "link"])
def test_output_that_is_no_folder(corpus, tmp_path, capsys, output):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("file")
    message = error_of(capsys, *command(corpus, tmp_path / output))
    assert message.startswith(f"{tmp_path}/{output}")
    assert message.endswith("): free space, or give another output folder")
    assert (tmp_path / "file").read_text() == "kept"


def test_output_that_is_empty_or_too_long(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of(capsys, *command(corpus, "")) == (
        "output is empty: give the folder that holds prepared corpora, e.g. data"
    )
    assert "could not be written (File name too long)" in error_of(capsys, *command(corpus, "x" * 300))
    assert os.listdir(tmp_path) == []


def test_something_else_in_the_place_of_the_folder(corpus, tmp_path, capsys):
    folder = Preparation.plan([str(corpus)], tmp_path, 257).folder
    folder.write_text("kept")
    assert "could not be written (Not a directory)" in error_of(capsys, *command(corpus, tmp_path))
    assert hidden_and_visible(tmp_path) == [folder.name]
    assert folder.read_text() == "kept"


@pytest.mark.parametrize(
    ("characters", "limit"),
    [
        pytest.param(5000, 3000, id="documents"),
        pytest.param(5000, 6000, id="tokenizer"),
        pytest.param(50_000, 70_000, id="chunk"),
    ],
)
def test_a_full_disk(tmp_path, capfd, monkeypatch, characters, limit):
    """A limit on the size of files ends a write as a full disk does, in whichever process."""
    monkeypatch.setattr(sinks.data.prepare, "CHUNK_BYTES", 2**20)
    (tmp_path / "a.txt").write_text("\n\n".join(f"word {n}" for n in range(characters // 10)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        message = error_of(capfd, *command(tmp_path / "a.txt", tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written (File too large): free space, or give another output folder" in message
    assert hidden_and_visible(tmp_path / "out") == []


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32), (2**32, np.uint32)])
def test_token_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, vocab_size, dtype):
    (tmp_path / "a.txt").write_text("one two three four\n\n" * 500)
    folder = prepare_text([str(tmp_path / "a.txt")], tmp_path / "out", vocab_size, processes=1)
    rows = Text([str(folder)], vocab_size=vocab_size, context_length=16).train_set()
    chunks = [np.fromfile(folder / "train" / chunk["filename"], dtype, offset=12) for chunk in rows.index["chunks"]]
    kept = np.concatenate([ids[: len(ids) // 17 * 17] for ids in chunks])
    assert np.array_equal(np.concatenate([rows[i] for i in range(len(rows))]), kept)
    assert TextTokenizer.load(folder).decode(kept).startswith("one two three four\n\none")


def test_vocabulary_beyond_32_bits():
    with pytest.raises(UserError, match=f"vocab_size is {2**32 + 1}, but .* 32 bits: give at most {2**32}"):
        Preparation.plan(None, "out", vocab_size=2**32 + 1)


def test_a_folder_from_before_skipped_files_had_reasons(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "copy")
    values = json.loads((folder / "manifest.json").read_text())
    del values["skipped"], values["records_without_text"]
    (folder / "manifest.json").write_text(json.dumps(values | {"skipped_files": 3}))
    manifest = verify(folder)
    assert (manifest.skipped, manifest.records_without_text) == ({"empty": 3}, 0)
    assert manifest.content == Manifest.read(prepared).content


def test_split_is_by_content_and_grows_with_the_fraction():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 2000, dtype=np.uint64)
    hashes = np.concatenate([hashes, hashes[::3]])
    small, large = validation_documents(hashes, 0.05), validation_documents(hashes, 0.3)
    assert 0.03 < small.mean() < 0.07
    assert 0.27 < large.mean() < 0.33
    assert not (small & ~large).any()
    assert not set(hashes[small].tolist()) & set(hashes[~small].tolist())
    shuffled = rng.permutation(len(hashes))
    assert np.array_equal(validation_documents(hashes[shuffled], 0.05), small[shuffled])


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_side_gets_a_document(share):
    hashes = np.array([2**63, 2**63, 2**62, 2**63 + 1], dtype=np.uint64)
    chosen = validation_documents(hashes, share)
    assert chosen.any()
    assert not chosen.all()


def test_groups_are_consecutive_and_closed_once_full(tmp_path):
    store = DocumentStore(tmp_path / "documents", np.cumsum([0, 3, 3, 10, 1, 1, 1, 5]), np.zeros(7, dtype=np.uint64))
    groups = store.groups(np.array([0, 1, 2, 4, 5, 6]), size=6)
    assert [group.tolist() for group in groups] == [[0, 1], [2], [4, 5, 6]]


def test_command_prints_a_summary(corpus, output, prepared, small_chunks, capsys):
    prepare([str(corpus)], output=str(output), vocab_size=300, validation_share=0.2)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{prepared} (unchanged)"
    assert "120 files, 0 skipped" in printed[1]
    assert "300 entries, bos document" in printed[3]
    train = Manifest.read(prepared).splits["train"]
    assert f"{train.tokens:,} tokens, {train.documents:,} documents" in printed[4]
