"""Named places at which statistics are read and interventions act.

A tap is an identity; a report passes tensors that only a listener needs. Unlike hooks they survive torch.compile,
activation checkpointing, DDP and FSDP2; unlike returned tensors they cost nothing without a listener.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinks.errors import UserError

Edit = Callable[[Tensor], Tensor]


class Tap(nn.Module):
    """Identity: passes a detached value to `listener(site, value)`, and returns `edit(value)`.

    Both are None by default. A listener gets the edited value, with which the model continues.

    Args:
        site: stable name, e.g. `blocks.0.attention.norm.input`.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.listener: Callable[[str, Tensor], None] | None = None
        self.edit: Edit | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.edit is not None:
            x = self.edit(x)
        if self.listener is not None:
            with torch.no_grad():
                self.listener(self.site, x.detach())
        return x

    def extra_repr(self) -> str:
        return self.site


class Report(nn.Module):
    """Passes the tensors of a computation to `listener(tensors)`; None by default.

    Compute what only a listener needs under `if report.listener is not None`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listener: Callable[[dict[str, Any]], None] | None = None

    def forward(self, **tensors: Any) -> None:
        if self.listener is not None:
            with torch.no_grad():
                self.listener({n: x.detach() if isinstance(x, Tensor) else x for n, x in tensors.items()})


def taps_of(module: nn.Module) -> list[Tap]:
    """Every tap of a model, in order of definition."""
    return [m for m in module.modules() if isinstance(m, Tap)]


@contextmanager
def editing(module: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Intervene at sites inside the `with` block: a tap returns what its edit returns.

    Compiled blocks run eagerly there.

    Args:
        module: a model with taps.
        edits: site -> function of the tensor there; it returns one of the same shape.

    Raises:
        UserError: if a site is unknown, naming the nearest.
    """
    taps = {tap.site: tap for tap in taps_of(module)}
    for site in edits:
        if site not in taps:
            near = difflib.get_close_matches(site, taps, 3) or list(taps)[:3]
            raise UserError(f"unknown site {site!r} to edit: sites are e.g. {', '.join(near)}")
    try:
        for site, edit in edits.items():
            taps[site].edit = edit
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for site in edits:
            taps[site].edit = None
