"""The variant under FSDP2: built on the meta device, its parameters DTensors, in a process group of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from sinks.checks.subject import NotTried, Subject, decoder_of, same, trained
from sinks.errors import UserError
from sinks.parallel.strategy import Sharded

STEPS = 2


def sharded_step(subject: Subject) -> None:
    """Steps under FSDP2 give the weights that they give without."""
    if dist.is_initialized():
        raise NotTried("this process is already in a process group")
    plain = subject.make()
    rows = subject.rows(plain)
    trained(_seeded(plain), rows, STEPS)
    sharded = subject.make()
    # Lightning sets addresses and ranks here; with a rank set, it starts no processes and no monitor thread.
    with mock.patch.dict(os.environ, {"LOCAL_RANK": "0", "NODE_RANK": "0"}), uninitialized_is_nan():
        os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier seed_everything, with which it would seed again
        try:
            trained(_seeded(sharded), rows, STEPS, strategy=Sharded(process_group_backend="gloo"))
            found = {name: _full(p) for name, p in decoder_of(sharded).named_parameters()}
        except UserError as error:
            raise NotTried(f"the variant rejects it: {error}") from None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    for name, expected in decoder_of(plain).named_parameters():
        same(found[name], expected.detach(), f"{name} after {STEPS} steps", 1e-4)


@contextmanager
def uninitialized_is_nan() -> Iterator[None]:
    """Fill new memory with NaN: it may be zero otherwise, and what was never initialized would pass by chance."""
    before, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def _seeded(model: Any) -> Any:
    torch.manual_seed(0)
    return model


def _full(parameter: torch.Tensor) -> torch.Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
