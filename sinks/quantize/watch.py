"""Looking at what modules read while a model runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

See = Callable[[Tensor], None]


def version(tensor: Tensor) -> int:
    """How often the memory of a tensor was written to."""
    return tensor._version


@contextmanager
def watching(watchers: Iterable[tuple[nn.Module, See]]) -> Iterator[None]:
    """Inside the `with` block, pass every input of some modules on, detached.

    Args:
        watchers: modules of one tensor, and what gets that tensor before the module does.
    """
    handles = []
    try:
        for module, see in watchers:
            handles.append(module.register_forward_pre_hook(partial(_pass_on, see), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pass_on(see: See, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = args[0] if args else next(iter(kwargs.values()))
    see(x.detach())
