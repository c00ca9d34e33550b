"""How DDP sums gradients over processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def reduce_in_float32(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Communication hook: the mean over processes in float32, also where parameters are bfloat16 (as FSDP2 does)."""
    gradients = bucket.buffer()
    wide = gradients.float() / dist.get_world_size()
    done = dist.all_reduce(wide, async_op=True).get_future()
    return done.then(lambda future: gradients.copy_(future.value()[0]))
