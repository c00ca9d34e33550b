"""The suite's own decoder as a folder that transformers opens."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.interop.decoder_config import NoCounterpart, attention_of, blocks_of, config_of
from sinks.interop.decoder_names import parameters_by_transformers_name, transformers_name
from sinks.interop.decoder_remote import FILE, remote_config_of
from sinks.interop.weight_files import WEIGHTS
from sinks.models.decoder import Decoder
from sinks.models.normalizers import LearnableSink
from sinks.record.atomic import replacing
from sinks.record.folder import to_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def export(
    model: CausalLM, folder: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Write config.json and float32 safetensors that `AutoModelForCausalLM.from_pretrained` opens.

    A model that transformers does not have comes with the code that computes it; config.json then has `auto_map`, and
    `from_pretrained` needs `trust_remote_code=True`. The folder is there whole or not at all.

    Args:
        model: configured and not sharded.
        folder: must not exist, or be empty.
        tokenizer: a tokenizer.json, or a folder with one, which is copied.

    Returns:
        The content of config.json.

    Raises:
        UserError: if neither transformers nor that code computes the same, or a path cannot be used.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists: choose another folder, or remove it")
    source = None if tokenizer is None else _tokenizer(Path(tokenizer))
    if model.decoder is None:
        raise UserError("the model has no weights yet: load a run, or call configure_model()")
    config, tensors = _config(model), _tensors(model.decoder)
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, temporary / WEIGHTS, {"format": "pt"})
        if "auto_map" in config:
            shutil.copyfile(Path(__file__).with_name(FILE), temporary / FILE)
        if source is not None:
            _copy_tokenizer(source, temporary)
    return config


def _config(model: CausalLM) -> dict[str, Any]:
    """With the code that the model brings, if transformers has none."""
    assert model.decoder is not None
    try:
        return config_of(model.decoder, model.architecture)
    except NoCounterpart:
        return remote_config_of(model.decoder, model.architecture)


def _tensors(decoder: Decoder) -> dict[str, Tensor]:
    """The parameters; of a learned sink, its logit."""
    found = {
        name: parameter.detach().to("cpu", torch.float32).contiguous()
        for name, parameter in parameters_by_transformers_name(decoder).items()
    }
    for layer, block in enumerate(blocks_of(decoder)):
        normalizer = attention_of(block).normalizer
        if isinstance(normalizer, LearnableSink):
            name = transformers_name(f"blocks.{layer}.attention.normalizer.sink")
            found[name] = normalizer.sink_scale * found[name]
    return found


def _tokenizer(given: Path) -> Path:
    file = given / TOKENIZER if given.is_dir() else given
    if not file.is_file():
        raise UserError(f"there is no tokenizer {file}: give a {TOKENIZER}, or a folder with one")
    return file


def _copy_tokenizer(file: Path, folder: Path) -> None:
    shutil.copyfile(file, folder / TOKENIZER)
    beside = file.with_name(TOKENIZER_CONFIG)
    if beside.is_file():
        shutil.copyfile(beside, folder / TOKENIZER_CONFIG)
    else:  # without it, transformers takes the tokenizer of the family for granted
        plain = to_json({"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
        (folder / TOKENIZER_CONFIG).write_text(plain + "\n", encoding="utf-8")
