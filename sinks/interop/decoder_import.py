"""A Llama-, Mistral-, Qwen2-, Qwen3- or gpt-oss-shaped checkpoint as the suite's own decoder."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.interop.decoder_arguments import arguments_of, require_family
from sinks.interop.decoder_names import parameters_by_transformers_name
from sinks.interop.weight_files import one_line, read_json, reading, weight_files
from sinks.models.positions import Rotary

# Buffers of older checkpoints, which the decoder computes itself.
COMPUTED = "rotary_emb.inv_freq"


def import_model(source: str | os.PathLike[str] | nn.Module, context_length: int | None = None) -> CausalLM:
    """The suite's decoder with the weights of a transformers model, in float32 on the CPU and in evaluation mode.

    Args:
        source: a folder with config.json and safetensors, read one tensor at a time; or a transformers model.
        context_length: of the result, whose rotary tables grow with it; the model's max_position_embeddings by default.

    Raises:
        UserError: naming what the decoder has no counterpart for; or a tensor that is missing, unexpected, of another
            size or unreadable.
    """
    config = read_config(source)
    model = CausalLM(config["vocab_size"], context_length or config["max_position_embeddings"], **arguments_of(config))
    load_weights(model, source)
    return model


def read_config(source: str | os.PathLike[str] | nn.Module) -> dict[str, Any]:
    """The configuration of a folder or a transformers model, defaults included.

    Raises:
        UserError: if there is none that transformers knows.
    """
    if isinstance(source, nn.Module):
        config: Any = getattr(source, "config", None)
        if not hasattr(config, "to_dict"):
            raise UserError(f"{type(source).__name__} has no transformers configuration: give a transformers model")
        return dict(config.to_dict())
    from transformers import AutoConfig

    content = read_json(Path(source) / "config.json", "give a folder that save_pretrained wrote")
    require_family(content.get("model_type"))  # before transformers asks whether code that the folder brings may run
    with reading(str(Path(source) / "config.json")):
        return AutoConfig.from_pretrained(source, local_files_only=True).to_dict()


def load_weights(model: CausalLM, source: str | os.PathLike[str] | nn.Module) -> None:
    """Build a model's decoder from the weights of a folder or a transformers model.

    Args:
        model: not configured; in place.
        source: as for `import_model`.

    Raises:
        UserError: as `import_model`; the model is then as it was.
    """
    decoder = model.meta_decoder().to_empty(device="cpu")
    for module in decoder.modules():
        if isinstance(module, Rotary):
            module.reset_parameters()
    decoder.tie()
    parameters = parameters_by_transformers_name(decoder)
    with ExitStack() as opened:
        tensors = _of_module(source) if isinstance(source, nn.Module) else _of_folder(Path(source), opened)
        _require_same({name: tensor.size for name, tensor in tensors.items()}, parameters, model)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name].read())
    model.decoder = decoder
    model.eval()


class Stored(NamedTuple):
    """A tensor that need not be in memory.

    Args:
        size: of it.
        read: loads it.
    """

    size: tuple[int, ...]
    read: Callable[[], Tensor]


def _of_module(module: nn.Module) -> dict[str, Stored]:
    state = module.state_dict()
    return {name: Stored(tuple(tensor.shape), partial(state.__getitem__, name)) for name, tensor in state.items()}


def _of_folder(folder: Path, opened: ExitStack) -> dict[str, Stored]:
    """The tensors of all safetensors files of a folder, which stay open until `opened` is closed."""
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        try:
            handle = opened.enter_context(safe_open(file, framework="pt"))
            names = list(handle.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({one_line(error)}): copy or download it again") from None
        for name in names:
            found[name] = Stored(tuple(handle.get_slice(name).get_shape()), partial(handle.get_tensor, name))
    return found


def _require_same(stored: dict[str, tuple[int, ...]], parameters: dict[str, nn.Parameter], model: CausalLM) -> None:
    """Compare names and sizes of tensors with those of the decoder's parameters."""
    tied = {"lm_head.weight"} if model.architecture.tied_embeddings else set()
    for name in sorted(stored.keys() - parameters.keys() - tied):
        if not name.endswith(COMPUTED):
            raise UserError(f"the tensor {name} has no place in the decoder, and would be ignored: check config.json")
    for name, parameter in parameters.items():
        if name not in stored:
            raise UserError(f"the tensor {name} is missing: restore the file that holds it, or check config.json")
        if stored[name] != tuple(parameter.shape):
            raise UserError(
                f"the tensor {name} is {stored[name]}, but config.json describes {tuple(parameter.shape)}: check it"
            )
