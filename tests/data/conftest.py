"""One small corpus, prepared once for all tests that only read it."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import sinks.data.prepare
from sinks.data.prepare import prepare_text

WORDS = ["attention", "sink", "residual", "norm", "gate", "token", "head", "value", "query", "key", "softmax"]


def paragraph(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(20, 60))) + ".\n"


@pytest.fixture(scope="session")
def small_chunks() -> Iterator[None]:
    """Chunks of 4 KiB of text, so that a small corpus has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks.data.prepare, "CHUNK_BYTES", 4096)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 text files in subfolders, about 35 kB."""
    root = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for i in range(120):
        file = root / f"part{i % 3}" / f"{i:03d}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"File {i}. " + paragraph(rng), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="session")
def prepared(corpus: Path, output: Path, small_chunks: None) -> Path:
    """The corpus with `<bos>` before every document."""
    return prepare_text([str(corpus)], output, vocab_size=300, validation_share=0.2, processes=1)


@pytest.fixture(scope="session")
def prepared_without_bos(corpus: Path, output: Path, small_chunks: None) -> Path:
    """The corpus without `<bos>`, by two processes."""
    return prepare_text([str(corpus)], output, vocab_size=300, bos="none", validation_share=0.2, processes=2)
