"""A pretrained causal language model and its tokenizer, from a folder, a .gguf file or a model hub.

Weights are read from safetensors only: a pickle can run code.
"""

import math
import re
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from sinks.errors import UserError
from sinks.interop.extra import require_extra
from sinks.interop.gguf_file import converted
from sinks.interop.smollm2 import NAME as SMOLLM2
from sinks.interop.smollm2 import smollm2_file
from sinks.interop.weight_files import one_line, read_json, reading, weight_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# What is downloaded of a model: files at its top, without pickles and without weights in other formats.
WANTED = ["model*.safetensors", "*.json", "*.jinja", *TOKENIZERS, "merges.txt"]
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PROBE = 8


@dataclass(frozen=True)
class Pretrained:
    """A model to analyze.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: its own; text that spells a special token is text.
        name: as given by the user.
        folder: that holds the weights.
        bos: id that the tokenizer itself puts before a text; None if it puts none there.
    """

    model: "PreTrainedModel"
    tokenizer: "Tokenizer"
    name: str
    folder: Path
    bos: int | None


def load_pretrained(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    cache: str | Path = "data",
    stream: bool = False,
) -> Pretrained:
    """A causal language model and its tokenizer.

    Args:
        name: "smollm2", a folder that `save_pretrained` wrote, a .gguf file, or a name on the Hugging Face hub.
        device: to load the weights to.
        dtype: of the weights.
        trust_remote_code: whether code that the model brings may run.
        cache: folder that holds converted .gguf files.
        stream: leave the weights on disk, and read those of a block when it runs; for inference only. Those that are
            stored in another layout than used, e.g. of experts, are copied to a temporary folder while the model lives.

    Raises:
        UserError: if there is no such model, it is no causal language model that transformers knows, it brings code of
            its own that is not trusted, or weights or tokenizer are missing or damaged.
    """
    require_extra("transformers", *(["accelerate"] if stream else []))
    folder = folder_of(name, cache, trust_remote_code)
    config = _read_config(folder, name, trust_remote_code)
    weight_files(folder)
    tokenizer, bos = _read_tokenizer(folder, name, trust_remote_code)
    with ExitStack() as stack:
        offload = stack.enter_context(TemporaryDirectory(prefix="sinks-")) if stream else None
        model = _read_model(folder, name, config, dtype, trust_remote_code, offload)
        if stream:
            from sinks.interop.stream import stream_weights

            stream_weights(model, device)
            weakref.finalize(model, stack.pop_all().close)
        else:
            model.to(device)
    _check_causal(model.eval(), name)
    return Pretrained(model, tokenizer, name, folder, bos)


def folder_of(name: str, cache: str | Path = "data", trust_remote_code: bool = False) -> Path:
    """The folder that holds a model's files, downloaded or converted first if need be.

    Args:
        name: as for `load_pretrained`.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that the model brings is downloaded too.

    Raises:
        UserError: if there is no such model.
    """
    require_extra("transformers")
    path = smollm2_file() if name == SMOLLM2 else Path(name)
    if path.is_file() and path.suffix == ".gguf":
        return converted(path, Path(cache))
    if path.is_dir():
        return path
    if path.exists() or path.suffix == ".gguf" or not HUB_NAME.fullmatch(name):
        raise UserError(f"{name} is no model: give {SMOLLM2}, a folder, an existing .gguf file or a name on the hub")
    return _download(name, trust_remote_code)


def _download(name: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*WANTED, *(["*.py"] if trust_remote_code else [])]))
    except GatedRepoError:
        raise UserError(
            f"{name} is on the hub, but needs its owner's permission: ask there, then hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is neither a folder here nor a public model on the hub: check the name") from None
    except Exception as error:  # those of the network are of several libraries
        raise UserError(
            f"{name} is no folder here, and the hub could not be reached ({one_line(error)}): "
            "check the path, or connect to the network once"
        ) from None


def _read_config(folder: Path, name: str, trust_remote_code: bool) -> Any:
    """Of a causal language model; the code that it needs is known, or trusted."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    content = read_json(folder / "config.json", "give a folder that save_pretrained wrote")
    kind, code = content.get("model_type"), content.get("auto_map") or {}
    if code and kind not in CONFIG_MAPPING and not trust_remote_code:
        raise UserError(f"{name} brings code of its own: read it, then add --trust_remote_code true to run it")
    if not code and kind not in CONFIG_MAPPING:
        raise UserError(
            f"{name} is of architecture {kind!r}, which transformers {version('transformers')} does not know: "
            "install a version that does"
        )
    with reading(f"{folder / 'config.json'}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in code:
        raise UserError(f"{name} is of architecture {kind!r}, which is no causal language model: give one")
    return config


def _read_tokenizer(folder: Path, name: str, trust_remote_code: bool) -> tuple["Tokenizer", int | None]:
    """The tokenizer, and the id that it puts before a text.

    tokenizer.json is taken as it is, because a class of transformers may replace parts of it. Only that class knows of
    tokenizer_config.json, which may ask for BOS.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    # transformers makes an empty one where there is none.
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise UserError(f"{folder} has no tokenizer: copy the model's tokenizer.json into it")
    with reading(f"the tokenizer of {name}"):
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        backend = getattr(loaded, "backend_tokenizer", None)
        file = folder / TOKENIZERS[0]
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else backend
    if tokenizer is None:
        raise UserError(f"the tokenizer of {name} cannot be converted to tokenizer.json: copy one into {folder}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer, leading_special_token(backend or tokenizer)


def _read_model(
    folder: Path, name: str, config: Any, dtype: torch.dtype, trust_remote_code: bool, offload: str | None
) -> Any:
    """With a folder for weights that are not stored as they are used, all stay on disk."""
    from transformers import AutoModelForCausalLM

    placed = {} if offload is None else {"device_map": {"": "disk"}, "offload_folder": offload}
    with reading(f"the weights of {name}"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placed,
        )
    # transformers would initialize what is missing at random.
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{folder} has no weights for {len(missing)} parameters of its configuration ({missing[0]}, ...): "
            "restore the files, or its config.json"
        )
    return model


@torch.no_grad()
def _check_causal(model: Any, name: str) -> None:
    """Reject a model whose logits depend on later tokens, as those of an encoder do."""
    tokens = torch.arange(PROBE, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    changed = tokens.clone()
    changed[0, -1] = 0
    before, after = (model(row, use_cache=False).logits[0, :-1].float() for row in (tokens, changed))
    difference, largest = (before - after).abs().max().item(), before.abs().max().item()
    if not math.isfinite(largest):
        raise UserError(
            f"the logits of {name} are not finite: restore its weights, use float32, or do not stream them "
            "(its modules may use one another's)"
        )
    if difference > torch.finfo(model.dtype).eps ** 0.5 * largest:  # experts round differently with other tokens
        raise UserError(
            f"{name} is no causal language model: its logits change by {difference:.2g} of {largest:.2g} with a later "
            "token: give one"
        )


def leading_special_token(tokenizer: "Tokenizer") -> int | None:
    """The id that a tokenizer puts before a text; None if it puts none there."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    return encoding.ids[0] if encoding.special_tokens_mask[:1] == [1] else None
