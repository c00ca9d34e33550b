"""A .gguf file as a folder of safetensors and tokenizer.json, written once and read in seconds from then on.

<cache>/<name>-<fingerprint>/
    config.json, generation_config.json, model*.safetensors      weights, dequantized to float32
    tokenizer.json, tokenizer_config.json
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from sinks.errors import UserError
from sinks.interop.extra import require_extra
from sinks.record.atomic import PARTIAL, remove, replacing

FORMAT = 1


def converted(file: Path, cache: Path) -> Path:
    """The folder that a .gguf file was converted to; of several processes that call this, one converts.

    Args:
        file: .gguf.
        cache: folder that holds converted models.

    Raises:
        UserError: if the file holds no model that transformers can convert, or the folder cannot be written.
    """
    from filelock import FileLock

    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    fingerprint = hashlib.sha256(f"{FORMAT} {content}".encode()).hexdigest()
    folder = cache / f"{file.stem}-{fingerprint[:8]}"
    if folder.is_dir():  # renamed into place only when complete
        return folder
    require_extra("transformers", "gguf", "accelerate")
    print(f"converting {file.name} to {folder}, once; this takes a minute or two", flush=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                for killed in cache.glob(f".{folder.name}.*{PARTIAL}"):
                    remove(killed)
                with replacing(folder) as temporary:
                    _convert(file, temporary)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} could not be written ({error.strerror or error}): "
            "free space, or give another cache folder"
        ) from error
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # the readers of this format have no class of their own for a file they cannot read
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file} is no model that transformers can convert ({reason}): give a safetensors folder"
        ) from None
    _plain(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(model: Any) -> Any:
    """The same weights in a model that does not count as quantized, which transformers would not save."""
    from transformers import AutoModelForCausalLM

    config = model.config
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain
