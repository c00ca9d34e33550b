"""A model larger than memory: the weights of a module are read from its files when it runs.

transformers finds out which tensor of which file each parameter is, and accelerate reads it. accelerate's own hooks are
not used: they drop the weights of each single layer before forward hooks, which read gains, see it.
"""

import mmap
import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinks.interop.adapter import Adapter
from sinks.interop.weight_files import reading

_HALF = (torch.float16, torch.bfloat16)


def stream_weights(model: PreTrainedModel, device: str | torch.device) -> None:
    """Keep the weights of one module in memory: of a block, or of a module outside the blocks, e.g. the embedding.

    They are read before the module runs, once per forward pass, and dropped when another module needs its own. A weight
    that is not in memory is NaN. For inference only: no parameter requires gradients.

    Args:
        model: that `from_pretrained` returned with `device_map={"": "disk"}`.
        device: that the model is to run on.

    Raises:
        UserError: if the model has no list of blocks; later, from the model, if a file cannot be read.
    """
    blocks = Adapter().blocks(model)
    weights, dtypes = _take_weights(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    _tie_copies(model, weights)
    window = _Window(weights, _replace_parameters(model, dtypes, device))
    inside = {module for block in blocks for module in block.modules()}
    for block in blocks:
        window.watch(block, list(block.parameters()))
    for module in set(model.modules()) - inside:
        window.watch(module, list(module.parameters(recurse=False)))


def _take_weights(model: PreTrainedModel) -> tuple[Mapping[str, Tensor], dict[str, torch.dtype]]:
    """By the name of the parameter, tensors as stored, each read when asked for, and the dtypes to use them in."""
    hooks: list[Any] = [getattr(module, "_hf_hook", None) for module in model.modules()]
    weights = next(hook.weights_map.dataset for hook in hooks if getattr(hook, "weights_map", None) is not None)
    remove_hook_from_submodules(model)
    dtypes = {name: getattr(torch, place["dtype"]) for name, place in weights.index.items()}
    for place in weights.index.values():
        place.pop("dtype", None)  # accelerate would convert to it, in more memory
    # Patterns of what stays in float32; transformers has no public name for them, and forgets them on disk.
    kept = getattr(model, "_keep_in_fp32_modules_strict", None)
    if kept and model.dtype in _HALF:
        pattern = re.compile("|".join(part.replace("*", ".*") for part in kept))
        dtypes |= {name: torch.float32 for name in dtypes if pattern.search(name)}
    return weights, dtypes


def _tie_copies(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Tie weights of which the files hold two equal copies, which transformers does not compare on disk."""
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        parameter = model.get_parameter(source)
        if model.get_parameter(target) is not parameter and torch.equal(weights[target], weights[source]):
            _set(model, target, parameter)


def _replace_parameters(
    model: PreTrainedModel, dtypes: Mapping[str, torch.dtype], device: str | torch.device
) -> dict[nn.Parameter, str]:
    """Put parameters that take no memory in the place of all; they and their names in the files."""
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    names: dict[nn.Parameter, str] = {}
    for old, own in aliases.items():
        stored = next(name for name in own if name in dtypes)
        new = nn.Parameter(_absent(old.shape, dtypes[stored], device), requires_grad=False)
        names[new] = stored
        for name in own:
            _set(model, name, new)
    return names


def _set(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, parameter)


class _Window:
    """What is in memory: the parameters of the modules that run, and of the last one that did.

    Args:
        weights: by name, as stored.
        names: of parameters in `weights`.
    """

    def __init__(self, weights: Mapping[str, Tensor], names: Mapping[nn.Parameter, str]) -> None:
        self._weights, self._names = weights, names
        self._present: dict[nn.Module, list[nn.Parameter]] = {}
        self._running: list[nn.Module] = []

    def watch(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        """Have parameters in memory while a module runs."""
        if parameters:
            module.register_forward_pre_hook(lambda module, args: self._start(module, parameters))
            module.register_forward_hook(lambda module, args, output: self._running.remove(module), always_call=True)

    def _start(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        self._running.append(module)
        for other in self._present.keys() - self._running:
            for parameter in self._present.pop(other):
                parameter.data = _absent(parameter.shape, parameter.dtype, parameter.device)
        if module not in self._present:
            for parameter in parameters:
                parameter.data = self._read(parameter)
            self._present[module] = parameters

    def _read(self, parameter: nn.Parameter) -> Tensor:
        name = self._names[parameter]
        with reading(f"{name} of the model"):
            stored = self._weights[name]
            if stored.shape != parameter.shape:
                raise ValueError(f"{tuple(stored.shape)} in its file, {tuple(parameter.shape)} by config.json")
            return _empty(parameter).copy_(stored)


def _absent(shape: torch.Size, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """NaN of a shape, in the memory of one number."""
    return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)


def _empty(like: Tensor) -> Tensor:
    """Memory that goes back to the system when it is freed; what malloc gives would stay in pieces in its heap."""
    if like.device.type != "cpu":
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)
    memory = mmap.mmap(-1, like.numel() * like.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)
