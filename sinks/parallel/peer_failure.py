"""Detects that another process of a run has ended, or no longer answers."""

import re

import torch.distributed as dist


def peer_failure(error: BaseException) -> str | None:
    """The communication library's message, in short, if an exception means a peer failure.

    gloo raises at once when a connection breaks, and after the strategy's `timeout` when a process no longer answers.
    NCCL ends the process by itself after `timeout`, without an exception; there the launcher acts first: torchrun
    ends the other processes when one has ended, and so does srun --kill-on-bad-exit.
    """
    if not isinstance(error, RuntimeError):
        return None
    message = str(error)
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|nccl", message, re.IGNORECASE):
        return None
    first = re.sub(r"^\[\S+\.cc:\d+\] ", "", message.splitlines()[0])
    return first.split(". This is typically")[0].strip()
