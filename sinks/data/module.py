"""What every source of tokens shares: loaders in the suite's order of data, and the position to resume from."""

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import lightning
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sinks.data.loader import TimedDataLoader
from sinks.data.order import ShardBatchSampler, StreamBatchSampler
from sinks.described import Described
from sinks.errors import UserError
from sinks.parallel.ranks import data_ranks
from sinks.record.fingerprint import DataIdentity

# numpy turns larger ones into floating-point numbers: several seeds would give the same rows.
LARGEST_SEED = 2**63 - 1


class TokenData(Described, lightning.LightningDataModule):
    """Rows of `context_length + 1` token ids [B, T + 1] int64: inputs are `row[:-1]`, targets `row[1:]`.

    Training is one endless stream (see `sinks.data.order`); `trainer.max_steps` limits how far it is read.

    Args:
        vocab_size: number of token ids; the model takes it from here.
        context_length: tokens T the model sees; the model takes it from here.
        batch_size: rows per process and micro-batch; trainer.accumulate_grad_batches of them make a step.
        validation_batch_size: rows per process and validation batch; as many as in training if not given.
        seed: data seed, apart from the seed of initialization.
        num_workers: loader processes per rank.
    """

    # Options that say where the data is stored: a copy elsewhere is the same data.
    PLACES: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        batch_size: int,
        seed: int,
        num_workers: int,
        validation_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.validation_batch_size = batch_size if validation_batch_size is None else validation_batch_size
        for name, value in (
            ("context_length", context_length),
            ("batch_size", batch_size),
            ("validation_batch_size", self.validation_batch_size),
        ):
            if value < 1:
                raise UserError(f"data.{name} is {value}, but must be at least 1: give a positive number")
        if num_workers < 0:
            raise UserError(
                f"data.num_workers is {num_workers}, but must be at least 0: give 0 to load in this process"
            )
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"data.seed is {seed}, but must be between 0 and {LARGEST_SEED}: give e.g. 0")
        self.vocab_size, self.context_length, self.batch_size = vocab_size, context_length, batch_size
        self.seed, self.num_workers = seed, num_workers
        self._start = self._start_step = 0

    @abstractmethod
    def train_set(self) -> Dataset[torch.Tensor]:
        """Map-style set of training rows [T + 1]."""

    @abstractmethod
    def train_order(self) -> Callable[[int], int]:
        """The map from stream position to index of the training set."""

    @abstractmethod
    def validation_set(self) -> Dataset[torch.Tensor]:
        """Map-style, finite set of validation rows [T + 1]."""

    def query_kinds(self, tokens: Tensor) -> dict[str, Tensor]:
        """Masks [N, T] of kinds of queries that a task keeps apart, by name; none if it has only one."""
        return {}

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash of what the rows depend on: runs with different fingerprints are not compared."""

    def identity(self) -> DataIdentity:
        """What names the data of a run, wherever it is stored."""
        unseeded = copy.copy(self)
        unseeded.seed = 0
        defaults = {name: inspect.signature(type(self)).parameters[name].default for name in self.PLACES}
        return DataIdentity(self.fingerprint(), unseeded.fingerprint(), defaults)

    def _ranks(self) -> tuple[int, int]:
        return data_ranks(self.trainer) if self.trainer is not None else (0, 1)

    def _loader(self, dataset: Dataset[torch.Tensor], sampler: Sampler[list[int]]) -> TimedDataLoader:
        return TimedDataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def train_dataloader(self) -> TimedDataLoader:
        rank, world_size = self._ranks()
        sampler = StreamBatchSampler(self.train_order(), self.batch_size, rank, world_size, self._start)
        return self._loader(self.train_set(), sampler)

    def val_dataloader(self) -> TimedDataLoader:
        rank, world_size = self._ranks()
        dataset = self.validation_set()
        return self._loader(dataset, ShardBatchSampler(len(dataset), self.validation_batch_size, rank, world_size))  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The stream position after the last optimizer step."""
        if self.trainer is None:
            return {"stream_position": self._start, "step": self._start_step}
        # Counted from the start of this process: before a resume a step may have had another number of rows.
        per_step = self.batch_size * self._ranks()[1] * self.trainer.accumulate_grad_batches
        step = self.trainer.global_step
        return {"stream_position": self._start + (step - self._start_step) * per_step, "step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = int(state_dict["stream_position"])
        self._start_step = int(state_dict["step"])
