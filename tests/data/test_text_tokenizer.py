"""Byte-level BPE: any text survives, and no text is taken for `<bos>`."""

import pytest

from sinks.data.tokenizer import BOS_ID, TextTokenizer
from sinks.errors import UserError


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["the sink absorbs what the heads do not need\n"] * 50, vocab_size=290)


@pytest.mark.parametrize("text", ["the sink", " two  spaces\n\n\ttab", "caf\u00e9 \U0001f600", "a\x00b\r\n", ""])
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "the"])[0] == ids


def test_bos_is_id_0_and_no_text_contains_it(tokenizer):
    assert tokenizer.tokenizer.token_to_id("<bos>") == BOS_ID == 0
    ids = tokenizer.encode("a <bos> b")
    assert BOS_ID not in ids
    assert tokenizer.decode(ids) == "a <bos> b"
    assert tokenizer.decode([BOS_ID, *tokenizer.encode("the")]) == "the"
    assert tokenizer.labels([BOS_ID, *tokenizer.encode("the sink")])[:2] == ["<bos>", "the"]


def test_size_is_at_most_the_requested_one(tokenizer):
    assert 257 < len(tokenizer) <= 290
    assert len(TextTokenizer.train(["aa"], vocab_size=4096)) == 258


def test_a_saved_tokenizer_still_takes_bos_for_text(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.encode("the <bos> sink") == tokenizer.encode("the <bos> sink")


def test_training_is_deterministic(tokenizer):
    again = TextTokenizer.train(["the sink absorbs what the heads do not need\n"] * 50, vocab_size=290)
    assert again.tokenizer.to_str() == tokenizer.tokenizer.to_str()


def test_vocabulary_below_257_is_rejected():
    with pytest.raises(
        UserError, match=r"vocab_size is 256, but byte-level BPE needs at least 257 .*: give 257 or more"
    ):
        TextTokenizer.train(["a"], vocab_size=256)


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer.json: give a folder that `sinks prepare` wrote"):
        TextTokenizer.load(tmp_path)
