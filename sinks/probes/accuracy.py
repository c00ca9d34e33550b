"""Accuracy in percent on small tasks made from rows of text: next token, continuation choice, recall, induction.

A prediction is right if the target is the likeliest token. Intervals are bootstraps over rows. docs/evaluate.md has the
formulas.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.models.cross_entropy import token_losses
from sinks.stats.bootstrap import Interval, interval

Logits = Callable[[Tensor], Tensor]  # token ids [B, T] -> [B, T, V]
FIRST_BIN = 8  # distances 1 to 8; each further bin is twice as far
NEW = "new"  # pairs of tokens that the row did not have before


def measure(logits: Logits, rows: Tensor, batch_size: int, choices: int, tokens: int, seed: int) -> dict[str, Any]:
    """All tasks.

    Args:
        logits: of the model.
        rows: token ids [N, T + 1].
        batch_size: rows at a time.
        choices: continuations among which the row's own is to be found.
        tokens: of a continuation.
        seed: of the other continuations, the shuffled tokens and the bootstrap.

    Raises:
        UserError: if there are fewer rows than choices, or rows are too short for the tasks.
    """
    if len(rows) < choices:
        raise UserError(f"there are {len(rows)} rows, but {choices} choices, each of another row: give more rows")
    if rows.shape[1] < max(tokens + 2, 5):
        raise UserError(f"rows have {rows.shape[1]} tokens, but {tokens} of them are a continuation: give fewer")
    right = _right(logits, rows, batch_size)
    distances = torch.cat([repeated_at(part) for part in rows.cpu().split(batch_size)])
    found, first = continuation(logits, rows, batch_size, choices, tokens, seed), induction_rows(rows, seed)
    copied = _right(logits, first, batch_size)
    length = first.shape[1] // 2
    return {
        "next_token": _percent(right, torch.ones_like(right), seed),
        "continuation": _percent(found[:, None], torch.ones_like(found[:, None]), seed),
        "recall": {name: _percent(right, mask, seed) for name, mask in bins(distances).items() if mask.any()},
        "induction": {
            "first_copy": _percent(copied[:, 1:length], torch.ones_like(copied[:, 1:length]), seed),
            "second_copy": _percent(copied[:, length + 1 :], torch.ones_like(copied[:, length + 1 :]), seed),
        },
    }


def continuation(logits: Logits, rows: Tensor, batch_size: int, choices: int, tokens: int, seed: int) -> Tensor:
    """Whether a row's own last tokens are likelier after its first ones than the last tokens of other rows [N] bool.

    The others are those of the rows at `choices - 1` different distances, the same for all rows. One that is equal to
    the row's own does not count; a tie is wrong.
    """
    shifts = torch.randperm(len(rows) - 1, generator=torch.Generator().manual_seed(seed))[: choices - 1] + 1
    own = _score(logits, rows, batch_size, tokens)
    right = torch.ones(len(rows), dtype=torch.bool)
    for shift in shifts.tolist():
        other = rows.roll(-shift, 0)
        same = (other[:, -tokens:] == rows[:, -tokens:]).all(1).cpu()
        changed = torch.cat([rows[:, :-tokens], other[:, -tokens:]], 1)
        right &= same | (own > _score(logits, changed, batch_size, tokens))
    return right


@torch.no_grad()
def _score(logits: Logits, rows: Tensor, batch_size: int, tokens: int) -> Tensor:
    """Log-probability of the last tokens of rows in nats [N] float64, on the host."""
    parts = [
        token_losses(logits(part[:, :-1])[:, -tokens:], part[:, -tokens:]).sum(1) for part in rows.split(batch_size)
    ]
    return -torch.cat(parts)


@torch.no_grad()
def _right(logits: Logits, rows: Tensor, batch_size: int) -> Tensor:
    """Whether each token but the first is the likeliest [N, T] bool, on the host."""
    return torch.cat([(logits(p[:, :-1]).argmax(-1) == p[:, 1:]).cpu() for p in rows.split(batch_size)])


def repeated_at(rows: Tensor) -> Tensor:
    """How far back a row [N, T + 1] last had the same token followed by the same target [N, T]; 0 if it never had."""
    read, target = rows[:, :-1], rows[:, 1:]
    places = torch.arange(read.shape[1])
    distance = places[:, None] - places
    same = (read[:, :, None] == read[:, None]) & (target[:, :, None] == target[:, None]) & (distance > 0)
    far = distance.where(same, read.shape[1]).amin(2)
    return far.where(far < read.shape[1], 0)


def bins(distances: Tensor) -> dict[str, Tensor]:
    """The predictions at each range of distances, and those of new pairs: masks of the same shape."""
    found = {NEW: distances == 0}
    low, high = 1, FIRST_BIN
    while low <= distances.shape[1]:
        found[f"{low}-{high}"] = (distances >= low) & (distances <= high)
        low, high = high + 1, 2 * high
    return found


def induction_rows(rows: Tensor, seed: int) -> Tensor:
    """The first token of each row [N, T + 1], and twice the same T // 2 next ones, shuffled: [N, 2 (T // 2) + 1]."""
    length = (rows.shape[1] - 1) // 2
    order = torch.rand(len(rows), length, generator=torch.Generator().manual_seed(seed)).argsort(1).to(rows.device)
    copy = rows[:, 1 : length + 1].gather(1, order)
    return torch.cat([rows[:, :1], copy, copy], 1)


def _percent(right: Tensor, counted: Tensor, seed: int) -> Interval | dict[str, Any]:
    """Of predictions that are right, among those that count: bool [N, T] both."""
    sums, counts = (right & counted).sum(1).double() * 100, counted.sum(1)
    return dict(interval(sums, counts, seed)) | {"count": int(counts.sum())}
