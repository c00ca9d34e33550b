"""Loss token by token, under whatever edits are in force, from the first block on that they touch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinks.models.cross_entropy import token_losses

Logits = Callable[[Tensor], Tensor]  # token ids [B, T] -> [B, T, V]


class Scorer:
    """Scores rows of token ids again and again.

    Blocks before the first edited one give what they gave before: the stream at their end is kept. A model for which
    that changes the loss, because its blocks share more than the stream, runs as a whole each time.

    Args:
        logits: of the model.
        blocks: of its residual stream, first to last.
        rows: token ids [N, T + 1].
        batch_size: rows at a time.
        starts: blocks at which later passes start.
        watch: called with the number of a batch before it runs.
    """

    def __init__(
        self,
        logits: Logits,
        blocks: Sequence[nn.Module],
        rows: Tensor,
        batch_size: int,
        starts: Sequence[int] = (),
        watch: Callable[[int], None] = lambda batch: None,
    ) -> None:
        self._logits, self._blocks, self._batches, self.watch = logits, blocks, rows.split(batch_size), watch
        self._kept: list[dict[int, Any]] = []
        self._before = {min(start, len(blocks)) - 1 for start in starts if start > 0}
        self.base = self._first_pass()
        if self._before and not torch.equal(self._scored(0, max(self._before) + 1), self.base[: len(self._batches[0])]):
            self._kept = [{} for _ in self._batches]

    def losses(self, start: int = 0) -> Tensor:
        """Loss of every token but the first of each row in nats, on the host [N, T] float64.

        Args:
            start: the first block that an edit in force touches; the number of blocks for what comes after them.
        """
        found = []
        for batch in range(len(self._batches)):
            self.watch(batch)
            found.append(self._scored(batch, start))
        return torch.cat(found)

    def _first_pass(self) -> Tensor:
        found = []
        for batch in range(len(self._batches)):
            self._kept.append({})
            self.watch(batch)
            with self._keeping(self._kept[-1]):
                found.append(self._scored(batch, 0))
        return torch.cat(found)

    @torch.no_grad()
    def _scored(self, batch: int, start: int) -> Tensor:
        rows = self._batches[batch]
        with self._starting(batch, start):
            return token_losses(self._logits(rows[:, :-1]), rows[:, 1:])

    @contextmanager
    def _keeping(self, kept: dict[int, Any]) -> Iterator[None]:
        def keep(block: int, output: Any) -> None:
            kept[block] = output

        handles = [
            self._blocks[i].register_forward_hook(lambda module, args, output, i=i: keep(i, output))
            for i in self._before
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _starting(self, batch: int, start: int) -> Iterator[None]:
        """Blocks before the last one that is kept before `start` do nothing, and that one gives what was kept."""
        last = max((i for i in self._kept[batch] if i < start), default=-1)
        skipped = self._blocks[: last + 1]
        try:
            for block in skipped:
                block.forward = lambda *args, **kwargs: self._kept[batch][last]
            yield
        finally:
            for block in skipped:
                del block.forward
