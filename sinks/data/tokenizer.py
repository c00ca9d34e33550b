"""Byte-level BPE, which encodes every text losslessly; or a tokenizer that is given."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinks.errors import UserError

if TYPE_CHECKING:
    import tokenizers

BOS = "<bos>"
BOS_ID = 0
SMALLEST_VOCABULARY = 257
LARGEST_VOCABULARY = 2**32
TOKENIZER_FILE = "tokenizer.json"


class TextTokenizer:
    """Text to token ids and back; id 0 is `<bos>`, which no text contains, unless the tokenizer was given."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        # Text that happens to spell "<bos>" is text.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Learn merges from texts; fewer than `vocab_size` entries if the texts have too few pairs."""
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        check_vocab_size(vocab_size)
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "TextTokenizer":
        """The tokenizer of a prepared folder."""
        file = Path(folder) / TOKENIZER_FILE
        if not file.is_file():
            raise UserError(f"{folder} has no {TOKENIZER_FILE}: give a folder that `sinks prepare` wrote")
        return cls.read(file, f"delete {folder} and prepare it again")

    @classmethod
    def read(cls, file: Path, remedy: str = "give a tokenizer.json") -> "TextTokenizer":
        """The tokenizer of a tokenizer.json.

        Raises:
            UserError: if it cannot be read, with the remedy.
        """
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # tokenizers has no class of its own for a damaged file
            raise UserError(f"{file} cannot be read ({error}): {remedy}") from None

    def save(self, folder: str | Path) -> None:
        # Not by tokenizers, whose error for a full disk is not an OSError.
        (Path(folder) / TOKENIZER_FILE).write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids [T]; `<bos>` is skipped, and incomplete UTF-8 characters become U+FFFD."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def labels(self, ids: Sequence[int]) -> list[str]:
        """Each token's own text [T], to label an axis; `<bos>` is written out."""
        return [BOS if int(i) == BOS_ID else self.decode([i]) for i in ids]


def check_vocab_size(vocab_size: int) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size is {vocab_size}, but byte-level BPE needs at least {SMALLEST_VOCABULARY} "
            f"(256 bytes and {BOS}): give {SMALLEST_VOCABULARY} or more"
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise UserError(
            f"vocab_size is {vocab_size}, but token ids are stored in at most 32 bits: "
            f"give at most {LARGEST_VOCABULARY}"
        )
