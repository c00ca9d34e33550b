"""The causal, possibly windowed mask: of some rows and keys, or as a [T, T] tensor, cached, for the reference."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

_CAPACITY = 8
_cache: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()


def forbidden(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """Bool [len(rows), len(columns)]: True where query `rows[i]` may not see key `columns[j]`."""
    distance = rows[:, None] - columns[None, :]
    if window is None:
        return distance < 0
    return (distance < 0) | (distance >= window)


def causal_mask(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Bool [T, T]: True where attention is forbidden."""
    # A traced or fake mask belongs to its graph or mode, so it bypasses the cache.
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return _build(tokens, window, device)
    key = (tokens, window, device)
    mask = _cache.get(key)
    if mask is not None:
        _cache.move_to_end(key)
        return mask
    # A mask first built during validation would be an inference tensor, which autograd cannot save later.
    with torch.inference_mode(False):
        mask = _build(tokens, window, device)
    if type(mask) is Tensor:
        _cache[key] = mask
        if len(_cache) > _CAPACITY:
            _cache.popitem(last=False)
    return mask


def _build(tokens: int, window: int | None, device: torch.device) -> Tensor:
    positions = torch.arange(tokens, device=device)
    return forbidden(positions, positions, window)
