"""When another process of a run is gone, or no longer answers."""

import re

import torch.distributed as dist


def peer_failure(error: BaseException) -> str | None:
    """What the communication library said, in short, if an exception means that another process was lost.

    gloo tells at once when a connection breaks, and after the strategy's `timeout` when a process no longer answers.
    NCCL ends the process by itself after `timeout`, without an exception; there the launcher comes first: torchrun
    ends the other processes when one is gone, and so does srun --kill-on-bad-exit.
    """
    if not isinstance(error, RuntimeError):
        return None
    said = str(error)
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|nccl", said, re.IGNORECASE):
        return None
    first = re.sub(r"^\[\S+\.cc:\d+\] ", "", said.splitlines()[0])
    return first.split(". This is typically")[0].strip()
