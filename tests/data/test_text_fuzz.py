"""Whatever a file that the data side reads contains: the right values, or one line and nothing half-written."""

import contextlib
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import sinks.data.prepare
from sinks.cli import main
from sinks.data.corpus import find_corpus
from sinks.data.manifest import Manifest, verify
from sinks.data.prepare import prepare_text
from sinks.data.text import Text
from sinks.data.tokenizer import TextTokenizer
from sinks.errors import UserError

SEED = 0
TEXTS = ["attention sink\r\n", "residual \u2028 sink \u00e9", "norm and gate\n\n", "\U0001f600 token", "value " * 40]


def few_or_many(many: int, few: int = 12) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def fuzz(examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Call a function with examples of the strategies."""

    def run(check: Callable[..., None]) -> None:
        health = [HealthCheck.too_slow, HealthCheck.data_too_large]
        options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=health)
        seed(SEED)(options(given(**strategies)(check)))()

    return run


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some replaced, removed or inserted, and perhaps without their end."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return bytes(changed[: draw(st.none() | st.integers(0, len(changed)))])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("../x") | st.just("x\0"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """A JSON document of which one value is another one, or missing."""
    root = [json.loads(content)]
    holder, key = root, 0
    while isinstance(holder[key], list | dict) and holder[key] and draw(st.integers(0, 3)):
        holder = holder[key]
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    if holder is root or draw(st.booleans()):
        holder[key] = draw(VALUES)
    else:
        del holder[key]
    return json.dumps(root[0]).encode()


def outcome(arguments: list[str]) -> int:
    """The exit code of a command that ends in success or in one line."""
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    assert code in (0, 2)
    assert errors.getvalue().count("\n") == (code == 2)
    assert errors.getvalue().startswith("sinks: error: " if code else "")
    return code


# -- a corpus --------------------------------------------------------------------------------------------------


def whole(name: str) -> bytes:
    """The file of that name, undamaged."""
    if name == "a.txt":
        return "".join(TEXTS).encode()
    if name == "a.jsonl":
        return "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS).encode()
    stream = io.BytesIO()
    column = pyarrow.array(TEXTS).dictionary_encode() if name == "dictionary.parquet" else TEXTS
    table = pyarrow.table({"n": list(range(len(TEXTS))), "text": column})
    pyarrow.parquet.write_table(table, stream, compression="zstd" if name == "dictionary.parquet" else "none")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "dictionary.parquet"])
@few_or_many(300, few=4)
def test_a_damaged_corpus(name, examples):
    content = whole(name)
    options = [damaged(content), st.binary(min_size=1, max_size=40)]
    if name == "a.txt":
        options.append(st.text(min_size=1).map(lambda text: text.encode("utf-8", "surrogatepass")))
    if name == "a.jsonl":
        lines = st.lists(VALUES | st.builds(lambda value: {"text": value}, VALUES), min_size=1, max_size=4)
        options.append(lines.map(lambda values: "\n".join(map(json.dumps, values)).encode()))

    @fuzz(examples, content=st.one_of(options), bos=st.sampled_from(["none", "document"]))
    def check(content: bytes, bos: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file, output = Path(folder, name), Path(folder, "out")
            file.write_bytes(content)
            Path(folder, "b.txt").write_text("another document")
            sources = [str(file), f"{folder}/b.txt"]
            code = outcome(
                ["prepare", *sources, f"--output={output}", "--vocab_size=257", "--processes=1", f"--bos={bos}"]
            )
            prepared = [path for path in output.glob("*") if path.name != ".lock"]
            assert len(prepared) == (code == 0)
            if code == 0:
                verify(prepared[0])
                assert decoded(prepared[0]) == sorted(
                    "".join(text for _, text in find_corpus(sources).documents() if text)
                )


def decoded(folder: Path) -> list[str]:
    """The characters of all documents."""
    tokenizer, text = TextTokenizer.load(folder), ""
    for chunk in folder.glob("*/chunk-*.bin"):
        text += tokenizer.decode(np.fromfile(chunk, dtype=np.uint16, offset=12).tolist())
    return sorted(text)


# -- a prepared folder -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of a few kB."""
    root = tmp_path_factory.mktemp("small")
    rng = random.Random(0)
    for n in range(12):
        (root / f"{n}.txt").write_text(" ".join(rng.choice(["sink", "norm", "gate"]) for _ in range(60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks.data.prepare, "CHUNK_BYTES", 1024)
        return prepare_text([str(root)], root / "out", vocab_size=280, validation_share=0.3, processes=1)


def rows_of(folder: Path) -> list[list[list[int]]]:
    data = Text([str(folder)], vocab_size=280, context_length=16)
    data.prepare_data()
    return [[rows[i].tolist() for i in range(len(rows))] for rows in (data.train_set(), data.validation_set())]


FILES = ["manifest.json", "tokenizer.json", "train/index.json", "val/index.json", "train/chunk-0-0.bin"]


@pytest.mark.parametrize(
    ("kind", "name"), [("prepared", name) for name in FILES] + [("plain", name) for name in FILES[2:]]
)
@few_or_many(150)
def test_a_damaged_folder(kind, name, examples, small, tmp_path):
    """Every damage of a folder with checksums is found; in one without, that of the tokens themselves is not."""
    folder, expected = tmp_path / "copy", rows_of(small)
    shutil.copytree(small, folder)
    if kind == "plain":
        (folder / "manifest.json").unlink()
        (folder / "tokenizer.json").unlink()
    original = (folder / name).read_bytes()
    contents = [damaged(original), st.binary(max_size=40)]
    if name.endswith(".json"):
        contents.append(changed_json(original))

    @fuzz(examples, content=st.one_of(contents))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        try:
            found = rows_of(folder)
        except UserError:
            return
        assert name == "manifest.json" or kind == "plain" or content == original
        if name.endswith(".bin"):
            assert [len(rows) for rows in found] == [len(rows) for rows in expected]
        else:
            assert found == expected


@few_or_many(300)
def test_a_damaged_manifest_ends_the_command_in_one_line(examples, small, tmp_path):
    sources = ["--output", str(tmp_path), "--vocab_size", "280", "--validation_share", "0.3", "--processes", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks.data.prepare, "CHUNK_BYTES", 1024)
        folder = shutil.copytree(small, tmp_path / small.name)
        original = (folder / "manifest.json").read_bytes()

        @fuzz(examples, content=damaged(original) | changed_json(original))
        def check(content: bytes) -> None:
            (folder / "manifest.json").write_bytes(content)
            if outcome(["prepare", str(small.parents[1]), *sources]) == 0:
                assert Manifest.read(folder).content == Manifest.read(small).content
            assert set(os.listdir(tmp_path)) <= {folder.name, ".lock"}


@few_or_many(300)
def test_a_damaged_tokenizer(examples, small, tmp_path):
    content = (small / "tokenizer.json").read_bytes()

    @fuzz(examples, content=damaged(content) | changed_json(content) | st.binary(max_size=40))
    def check(content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with contextlib.suppress(UserError):
            TextTokenizer.load(tmp_path).encode("attention sink")
