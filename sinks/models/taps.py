"""Named places at which statistics are read.

A tap is an identity. Unlike a hook it survives torch.compile, activation checkpointing, DDP and FSDP2; unlike a
returned tensor it costs nothing while it is off.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Tap(nn.Module):
    """Identity; while `on`, hands a detached value to `listener(site, value)`.

    Args:
        site: stable name, e.g. `blocks.0.attention.norm.input`.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.on = False
        self.listener: Callable[[str, Any], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            self.report(x)
        return x

    def report(self, value: Tensor | dict[str, Tensor]) -> None:
        """Hand over a value that only a listener needs; call it under `if tap.on`."""
        assert self.listener is not None, f"tap {self.site} is on without a listener"
        with torch.no_grad():
            detached = {k: v.detach() for k, v in value.items()} if isinstance(value, dict) else value.detach()
            self.listener(self.site, detached)

    def extra_repr(self) -> str:
        return self.site


def taps_of(module: nn.Module) -> list[Tap]:
    """Every tap of a model, in order of definition."""
    return [m for m in module.modules() if isinstance(m, Tap)]
