"""Text in the tokens of a tokenizer that is given, such as a pretrained model's."""

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from sinks.cli import main
from sinks.data.text import Text
from sinks.data.tokenizer import TextTokenizer
from sinks.errors import UserError

DOCUMENTS = [f"Document {i} says that the sink absorbs {i * i}.\n" for i in range(60)]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of other text, which puts a token of its own before every text, and cuts it."""
    tokenizer = TextTokenizer.train(["other text of other words\n"] * 20, vocab_size=280).tokenizer
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.enable_truncation(3)
    file = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for i, text in enumerate(DOCUMENTS):
        (folder / f"{i:03d}.txt").write_text(text)
    return folder


def text(corpus: Path, **options: object) -> Text:
    places = {"sources": [str(corpus)], "folder": str(corpus.parent / "data")}
    sizes = {"vocab_size": 300, "context_length": 8, "batch_size": 2, "validation_share": 0.2}
    return Text(**places | sizes | {"bos": "none"} | options)  # type: ignore[arg-type]


def test_rows_hold_its_tokens_and_nothing_more(given: Path, corpus: Path) -> None:
    data = text(corpus, tokenizer=str(given))
    data.prepare_data()
    own, rows = TextTokenizer.read(given), data.train_set()
    ids = [i for index in range(len(rows)) for i in rows[index].tolist()]  # type: ignore[arg-type]
    decoded = own.decode(ids)
    assert 0 not in ids
    assert sum(document in decoded for document in DOCUMENTS) > 30
    assert data.tokenizer.tokenizer.to_str() == own.tokenizer.to_str()


def test_it_counts_in_the_datas_identity_by_its_content(given: Path, corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(given.read_bytes())
    trained, one, two = text(corpus), text(corpus, tokenizer=str(given)), text(corpus, tokenizer=str(copy))
    assert one.location == two.location != trained.location
    assert one.fingerprint() == two.fingerprint() != trained.fingerprint()


def test_mistakes_get_one_line(given: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = text(corpus, tokenizer=str(given)).location
    damaged = corpus.parent / "damaged.json"
    damaged.write_text("{}")
    wrong = {
        "there is no tokenizer nowhere.json: give a tokenizer.json": text(corpus, tokenizer="nowhere.json"),
        "damaged.json cannot be read": text(corpus, tokenizer=str(damaged)),
        "bos is document, but a given tokenizer has no <bos>": text(corpus, tokenizer=str(given), bos="document"),
        "vocab_size is 270, but": text(corpus, tokenizer=str(given), vocab_size=270),
        "holds token ids already: leave it out": text(Path(prepared), tokenizer=str(given)),
    }
    for words, data in wrong.items():
        with pytest.raises(UserError) as caught:
            data.prepare_data()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert main(["prepare", str(corpus), "--tokenizer=nowhere.json", "--bos=none"]) == 2
    assert "there is no tokenizer nowhere.json" in capsys.readouterr().err
