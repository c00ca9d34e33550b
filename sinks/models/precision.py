"""The precision of what must not be rounded to half precision."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
