"""Rows of a text: which tokens they hold, with and without BOS."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from transformers import PreTrainedTokenizerFast

from sinks.errors import UserError
from sinks.interop.load import Pretrained, load_pretrained
from sinks.interop.rows import read_rows
from tests.interop import tiny


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pretrained(str(tiny.save(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    return str(tmp_path / "text.txt")


def test_rows_are_consecutive_and_bos_takes_the_place_of_the_last_token(pretrained: Pretrained, text: str) -> None:
    ids = torch.tensor(tiny.tokenizer().encode(tiny.TEXT))
    rows = read_rows(pretrained, text, 3, 12, "none")
    assert torch.equal(rows.tokens, ids[:36].view(3, 12))
    assert (rows.source, rows.bos) == (text, None)
    with_bos = read_rows(pretrained, text, 3, 12, "7")
    assert with_bos.bos == 7
    assert torch.equal(with_bos.tokens, torch.cat([torch.full((3, 1), 7), rows.tokens[:, :-1]], 1))


def test_bos_is_as_the_tokenizer_does(pretrained: Pretrained, text: str) -> None:
    assert read_rows(pretrained, text, 1, 12).bos is None
    own = Pretrained(pretrained.model, pretrained.tokenizer, "tiny", pretrained.folder, bos=5)
    assert read_rows(own, text, 1, 12).tokens[0, 0] == 5
    assert read_rows(own, text, 1, 12, "none").bos is None


def test_text_that_spells_a_special_token_is_text(pretrained: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("<bos>" * 10)
    assert 0 not in read_rows(pretrained, str(tmp_path / "text.txt"), 1, 10).tokens


def test_lines_of_a_jsonl_file_follow_one_another(pretrained: Pretrained, tmp_path: Path) -> None:
    lines = ["One line.", "Another one."]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    ids = [i for line in lines for i in tiny.tokenizer().encode(line)]
    assert read_rows(pretrained, str(tmp_path / "text.jsonl"), 1, len(ids)).tokens.tolist() == [ids]


def test_a_short_text_gives_the_rows_that_it_has(pretrained: Pretrained, tmp_path: Path) -> None:
    text = "A few words."
    (tmp_path / "text.txt").write_text(text)
    count = len(tiny.tokenizer().encode(text))
    assert read_rows(pretrained, str(tmp_path / "text.txt"), 9, 3).tokens.shape == (count // 3, 3)
    with pytest.raises(UserError, match=f"has {count} tokens, but a row has 200: give a longer text"):
        read_rows(pretrained, str(tmp_path / "text.txt"), 1, 200)


def test_the_default_text_is_the_standard_library(pretrained: Pretrained) -> None:
    rows = read_rows(pretrained, None, 2, 50)
    assert rows.source.startswith("standard library of Python")
    assert "import" in pretrained.tokenizer.decode(read_rows(pretrained, None, 1, 2000).tokens[0].tolist())


@pytest.mark.parametrize("bos", ["300", "-1", "seven", "", "1.0", "\u0661"])
def test_a_bos_that_is_no_id_is_one_line(bos: str, pretrained: Pretrained, text: str) -> None:
    with pytest.raises(UserError, match="but must be auto, none, chat or an id below 300"):
        read_rows(pretrained, text, 1, 12, bos)


def test_a_tokenizer_of_another_model_is_one_line(text: str, tmp_path: Path) -> None:
    small = load_pretrained(str(tiny.save(tmp_path / "small", vocab_size=260)))
    with pytest.raises(UserError, match=r"gives id \d+, but the model's ids end at 259: restore the tokenizer"):
        read_rows(small, text, 1, 12)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 12), (1, 1)])
def test_rows_of_nothing_are_one_line(rows: int, tokens: int, pretrained: Pretrained, text: str) -> None:
    with pytest.raises(UserError, match=r"(rows is 0|tokens is 1), but must be at least"):
        read_rows(pretrained, text, rows, tokens)


TEMPLATE = "{% for message in messages %}<bos>{{ message.role }}: {{ message.content }}<bos>{% endfor %}"


def with_template(pretrained: Pretrained, folder: Path, template: str | None) -> Pretrained:
    fast = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().tokenizer)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return Pretrained(pretrained.model, pretrained.tokenizer, "tiny", folder, None)


def test_a_row_is_the_beginning_of_a_chat(pretrained: Pretrained, text: str, tmp_path: Path) -> None:
    rows = read_rows(with_template(pretrained, tmp_path / "chat", TEMPLATE), text, 3, 24, "chat")
    start = [0, *tiny.tokenizer().encode("user: ")]
    plain = read_rows(pretrained, text, 3, 24, "none").tokens
    assert len(start) > 1
    assert rows.tokens.tolist() == [start + row[: -len(start)] for row in plain.tolist()]
    assert rows.bos == "chat"


@pytest.mark.parametrize(
    ("template", "tokens", "reason"),
    [
        (None, 24, "tiny has no chat template: give auto, none or an id"),
        ("{{ raise_exception('no users here') }}", 24, "cannot be rendered .*no users here"),
        ("{{ messages[0].content }}", 24, "puts nothing before a message"),
        ("<bos>", 24, "puts nothing before a message"),
        (TEMPLATE, 3, r"the start of a chat has \d+ tokens, but a row has 3: give --tokens more"),
    ],
)
def test_a_chat_that_cannot_begin_is_one_line(
    template: str | None, tokens: int, reason: str, pretrained: Pretrained, text: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        read_rows(with_template(pretrained, tmp_path / "chat", template), text, 1, tokens, "chat")
