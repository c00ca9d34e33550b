"""lm-evaluation-harness's interface to a language model, on a function from token ids to logits.

The requests are turned into rows of ids as by its own class for transformers models, so that the numbers are the same.
Rows are padded on the right, where no token of a causal model sees it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sinks.errors import UserError
from sinks.interop.evaluated import Evaluated
from sinks.progress import live

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# Tokens that are generated where a task names no number, as by lm-eval's own class.
GENERATED = 256


class Continuation:
    """A text that is being generated.

    Args:
        context: ids that it follows.
        limit: largest number of its tokens.
        stops: texts that it ends at.
        ends: ids that it ends at.
        tokenizer: from ids to text.
    """

    def __init__(
        self, context: list[int], limit: int, stops: list[str], ends: frozenset[int], tokenizer: Tokenizer
    ) -> None:
        self.tokens, self.start = list(context), len(context)
        self.limit, self.stops, self.ends, self.tokenizer = limit, stops, ends, tokenizer
        self.ended = False

    def take(self, token: int) -> None:
        """Add the next id."""
        if token in self.ends:
            self.ended = True
            return
        self.tokens.append(token)
        stopped = any(stop in self._generated() for stop in self.stops if stop)
        self.ended = stopped or len(self.tokens) - self.start == self.limit

    def text(self) -> str:
        """What was generated before the first stop."""
        return postprocess_generated_text(self._generated(), self.stops, None)

    def _generated(self) -> str:
        return self.tokenizer.decode(self.tokens[self.start :])


class LogitsModel(TemplateLM):
    """Log-likelihoods and greedy generation from logits.

    Args:
        evaluated: the model.
        batch_size: rows at a time.

    Attributes:
        truncated: number of requests whose context did not fit, and lost its first tokens.
    """

    def __init__(self, evaluated: Evaluated, batch_size: int) -> None:
        super().__init__()
        self.evaluated, self.batch_size, self.truncated = evaluated, batch_size, 0
        # Tasks may spell special tokens, such as <unk> in WikiText, and mean them.
        self.tokenizer = Tokenizer.from_str(evaluated.tokenizer.to_str())
        self.tokenizer.encode_special_tokens = False

    @property
    def eot_token_id(self) -> int | None:
        """What generated text ends at."""
        return next(iter(self.evaluated.special.ends), None)

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text without context is predicted from.

        Raises:
            UserError: if the tokenizer names none.
        """
        prefix = self.evaluated.special.prefix
        if prefix is None:
            raise UserError(
                "a text without context follows BOS or EOS, but the tokenizer names neither: give --prefix_token_id"
            )
        return prefix

    @property
    def max_length(self) -> int:
        """Largest number of tokens that the model takes."""
        return self.evaluated.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Ids of a text, after what the tokenizer itself puts before one, unless the text spells that.

        Args:
            string: the text.
            add_special_tokens: False: only the text itself.
            options: of other models; there are none here.
        """
        ids = self.tokenizer.encode(string, add_special_tokens=False).ids
        leading = self.evaluated.special.leading
        if leading is not None and add_special_tokens is not False and ids[:1] != [leading]:
            ids = [leading, *ids]
        largest, end = max(ids, default=0), self.evaluated.vocabulary - 1
        if largest > end:
            raise UserError(
                f"the tokenizer gives id {largest}, but the model's ids end at {end}: restore the tokenizer that "
                "belongs to it"
            )
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of continuations in nats, and whether greedy decoding gives them.

        Args:
            requests: each the text, ids of the context and ids of the continuation.
            disable_tqdm: show no progress on a terminal.
            options: of other models; there are none here.

        Raises:
            UserError: if a continuation has no tokens, or more than the model takes.
        """
        found = [(0.0, False)] * len(requests)
        # Choices of one token have the same row.
        places: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            places.setdefault(self._row(context, continuation), []).append(i)
        with live("evaluating", len(requests), "request", not disable_tqdm) as advance:
            for rows in self._batches(list(places)):
                for row, logits in zip(rows, self._logits(rows), strict=True):
                    for i in places[row]:
                        found[i] = _score(logits[: len(row)], requests[i][2])
                    advance(len(places[row]))
        return found

    def _row(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """What the model reads to predict a continuation: all tokens but the last, as many as fit."""
        if not 0 < len(continuation) <= self.max_length:
            raise UserError(
                f"a task asks for the likelihood of {len(continuation)} tokens, but must ask for 1 to "
                f"{self.max_length}, the model's context length: give another task"
            )
        tokens = (*context, *continuation)[:-1]
        self.truncated += len(tokens) > self.max_length
        return tokens[-self.max_length :]

    def _batches(self, rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Rows of about the same length; the longest come first, so that too little memory shows at once."""
        rows = sorted(rows, key=len, reverse=True)
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # a compiled model would be compiled for each of the many lengths
    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, T, V] in float32 of rows of up to T ids."""
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return self.evaluated.logits(padded.to(self.evaluated.device)).float()

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows of the model's context length.

        Args:
            requests: each a text.
            disable_tqdm: show no progress on a terminal.
        """
        windows: list[tuple[None, list[int], list[int]]] = []
        owners = []
        for i, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += value
        return totals

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, up to a stop sequence, EOS or the number of tokens that the task asks for.

        Every token is computed from the whole row: there is no key-value cache.

        Args:
            requests: each a context and options.
            disable_tqdm: show no progress on a terminal.

        Raises:
            UserError: if a task asks for sampling or beams, or more tokens than the model takes.
        """
        continuing = [self._continuation(*request.args) for request in requests]
        with live("generating", len(requests), "request", not disable_tqdm) as advance:
            for start in range(0, len(continuing), self.batch_size):
                active = batch = continuing[start : start + self.batch_size]
                while active:
                    for one, logits in zip(active, self._logits([one.tokens for one in active]), strict=True):
                        one.take(int(logits[len(one.tokens) - 1].argmax()))
                    active = [one for one in active if not one.ended]
                advance(len(batch))
        return [one.text() for one in continuing]

    def _continuation(self, context: str, asked: dict[str, Any]) -> Continuation:
        options = normalize_gen_kwargs(asked, GENERATED)
        if options["do_sample"] or options.get("num_beams", 1) != 1:
            raise UserError(f"a task asks to generate with {asked}, but generation is greedy here: give another task")
        limit = options["max_gen_toks"]
        room = self.max_length - limit
        if limit < 1 or room < 1:
            raise UserError(
                f"a task asks for {limit} generated tokens, but must ask for 1 to {self.max_length - 1}, less than "
                "the model's context length: give another task"
            )
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        self.truncated += len(tokens) > room
        stops = handle_stop_sequences(options["until"], None)
        return Continuation(tokens[-room:], limit, stops, self.evaluated.special.ends, self.tokenizer)


def _score(logits: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Log-probability of the last tokens in nats, and whether each is the most likely one.

    Args:
        logits: [T, V] of a row that ends before the last token.
        continuation: ids of the last tokens.
    """
    logits = logits[-len(continuation) :]
    targets = torch.tensor(continuation, device=logits.device)
    scores = logits.log_softmax(-1).gather(-1, targets[:, None])
    return scores.double().sum().item(), bool((logits.argmax(-1) == targets).all())
