"""What quantization has to know of a model's activations beforehand: how large they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from sinks.quantize.readers import Readers
from sinks.quantize.transforms import NONE, Transform


@torch.no_grad()
def channel_largest(
    readers: Sequence[Readers],
    run: Callable[[Tensor], object],
    batches: Iterable[Tensor],
    transforms: Mapping[str, Transform] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Of every input the largest |x| of each channel [in], by the readers' names; the first token of a row included.

    Args:
        readers: whose inputs are watched.
        run: runs the model over token ids [B, T].
        batches: of calibration text, which is not text that is scored.
        transforms: of the inputs, by the readers' names, before they are measured.
    """
    largest: dict[str, Tensor] = {}

    def watch(reader: Readers) -> torch.utils.hooks.RemovableHandle:
        def see(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            x = transforms.get(reader.name, NONE).inputs(args[0].detach())
            found = x.abs().flatten(0, -2).amax(0)
            before = largest.get(reader.name)
            largest[reader.name] = found if before is None else torch.maximum(before, found)

        return next(iter(reader.linears.values())).register_forward_pre_hook(see)

    handles = [watch(reader) for reader in readers]
    try:
        for batch in batches:
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return largest
