"""The order in which samples are read: a pure function of the seed, the same for one process, many, and a resumed run.

Global batch `g` of size `G` holds stream positions `g * G ... g * G + G - 1`; rank `r` of `w` takes positions
`g * G + r, g * G + r + w, ...`. So the union of the ranks' batches is the batch one process would have read, and a
resumed run continues at a stream position, at any world size.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler


def identity_order(position: int) -> int:
    """Sample `n` is at stream position `n`: for generated data, where samples are independent draws."""
    return position


class WindowedShuffle:
    """Chunks permuted per epoch, samples shuffled within a window of chunks: remote chunks still arrive in order.

    Args:
        chunk_lengths: number of samples of each chunk, in storage order.
        seed: data seed; the order is a pure function of (seed, epoch).
        window: number of consecutive (permuted) chunks whose samples are mixed.

    Calling it with a stream position gives a sample index; epochs follow one another without a gap.
    """

    def __init__(self, chunk_lengths: list[int], seed: int, window: int = 4) -> None:
        self.chunk_starts = np.concatenate([[0], np.cumsum(chunk_lengths)]).astype(np.int64)
        self.length = int(self.chunk_starts[-1])
        self.seed, self.window = seed, window
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Sample indices [length] of one epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        chunks = rng.permutation(len(self.chunk_starts) - 1)
        samples = [np.arange(self.chunk_starts[c], self.chunk_starts[c + 1]) for c in chunks]
        windows = [samples[first : first + self.window] for first in range(0, len(samples), self.window)]
        return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.epoch_order(epoch)
        return int(self._order[offset])


class StreamBatchSampler(Sampler[list[int]]):
    """Endless batches of sample indices for one rank, from a stream position on.

    Args:
        order: maps a stream position to a sample index.
        batch_size: samples per rank and batch.
        rank: this process.
        world_size: number of processes.
        start: stream position of the first sample of the first global batch.
    """

    def __init__(
        self, order: Callable[[int], int], batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        self.order, self.batch_size, self.start = order, batch_size, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start
        while True:
            yield [self.order(position + self.rank + i * self.world_size) for i in range(self.batch_size)]
            position += self.batch_size * self.world_size


class ShardBatchSampler(Sampler[list[int]]):
    """Every `world_size`-th sample of a finite set, in order, in batches of nearly equal size.

    Sums over ranks stay exact because no sample is repeated. Ranks may differ by one sample, but not in the number of
    batches as long as each has a sample for each: under FSDP all ranks must run the model equally often.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        most = -(-length // world_size)
        self.batches = min(-(-most // batch_size), len(self.indices))

    def __iter__(self) -> Iterator[list[int]]:
        bounds = [len(self.indices) * i // self.batches for i in range(self.batches + 1)] if self.batches else []
        for first, end in pairwise(bounds):
            yield list(self.indices[first:end])

    def __len__(self) -> int:
        return self.batches
