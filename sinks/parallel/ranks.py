"""Which part of the data a process reads."""

from typing import Any


def data_ranks(trainer: Any) -> tuple[int, int]:
    """Rank and number of the processes that read different data; ranks of one tensor-parallel group read the same."""
    spread = trainer.distributed_sampler_kwargs
    return (spread["rank"], spread["num_replicas"]) if spread else (0, 1)
