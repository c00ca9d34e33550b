"""What `sinks evaluate` measures, a run or a pretrained model alike: logits, and the tokenizer that belongs to them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinks.data.tokenizer import BOS
from sinks.errors import UserError, require
from sinks.families.stored import last_checkpoint, stored_model
from sinks.interop.analyze import files_fingerprint
from sinks.interop.load import leading_special_token, load_pretrained
from sinks.interop.weight_files import reading
from sinks.record import RunFolder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"
# What names a run in its provenance.json.
IDENTITY = ("variant", "seed", "config_fingerprint", "data_fingerprint", "imported_from", "started_from")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that stand for no text.

    Args:
        leading: what the tokenizer itself puts before a text; None if it puts nothing there.
        prefix: what the first token of a text without context is predicted from; None if none is named.
        ends: what generated text ends at.
    """

    leading: int | None
    prefix: int | None
    ends: frozenset[int]


@dataclass(frozen=True)
class Evaluated:
    """A model to evaluate.

    Args:
        logits: token ids [B, T] -> [B, T, V], causal.
        vocabulary: number V of ids.
        tokenizer: from text to ids.
        special: ids that stand for no text.
        max_length: largest T.
        device: of the ids that `logits` takes.
        identity: what names the model in results.
    """

    logits: Callable[[Tensor], Tensor]
    vocabulary: int
    tokenizer: "Tokenizer"
    special: SpecialTokens
    max_length: int
    device: torch.device
    identity: dict[str, Any]


def load_evaluated(
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    cache: str | Path = "data",
    prefix_token_id: int | None = None,
) -> Evaluated:
    """The last checkpoint of a run folder, or a pretrained model.

    Args:
        name: a run folder, or what `load_pretrained` takes.
        device: to load the weights to.
        dtype: of the weights of a pretrained model; those of a run are float32.
        trust_remote_code: whether code that a model brings may run.
        cache: folder that holds converted .gguf files.
        prefix_token_id: what the first token of a text without context is predicted from; None: BOS, or EOS if the
            tokenizer names no BOS.

    Raises:
        UserError: if there is no such model, no checkpoint, no tokenizer or no such id.
    """
    folder = RunFolder(name)
    if folder.analyzed:
        raise UserError(f"{name} is an analysis of a pretrained model, no training run: give the model itself")
    if not folder.has_provenance:
        found = _of_pretrained(name, device, dtype, trust_remote_code, cache)
    elif dtype != torch.float32:
        raise UserError(f"dtype is {_plain(dtype)}, but the weights of a run are float32: leave it out")
    else:
        found = _of_run(folder, device)
    if prefix_token_id is None:
        return found
    require("prefix_token_id", prefix_token_id, at_least=0, below=found.vocabulary, remedy="give an id of the model")
    return replace(found, special=replace(found.special, prefix=prefix_token_id))


def _of_run(folder: RunFolder, device: torch.device) -> Evaluated:
    checkpoint, own = last_checkpoint(folder.path), folder.provenance()
    model, data = stored_model(folder.path)
    if not hasattr(data, "tokenizer"):
        raise UserError(f"{folder.path} has data {type(data).__name__}, which is no text: give a run on Text")
    tokenizer = data.tokenizer.tokenizer
    given = getattr(data, "given_tokenizer", None)
    named = Path(given).parent if given and (Path(given).parent / TOKENIZER_CONFIG).is_file() else None
    return Evaluated(
        logits=model.to(device),
        vocabulary=model.vocab_size,
        tokenizer=tokenizer,
        special=_special_tokens(tokenizer, named),
        max_length=model.context_length,
        device=device,
        identity={"run": str(folder.path), "checkpoint": checkpoint.name} | {k: own[k] for k in IDENTITY if k in own},
    )


def _of_pretrained(
    name: str, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, cache: str | Path
) -> Evaluated:
    from lm_eval.models.utils import resolve_max_length

    loaded = load_pretrained(name, device, dtype, trust_remote_code, cache)
    model, folder = loaded.model, loaded.folder
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return Evaluated(
        logits=lambda tokens: model(tokens, use_cache=False).logits,
        vocabulary=model.get_input_embeddings().num_embeddings,
        tokenizer=loaded.tokenizer,
        special=_special_tokens(loaded.tokenizer, folder, trust_remote_code, ends),
        max_length=resolve_max_length(model.config),
        device=device,
        identity={"name": name, "weights": files_fingerprint(folder), "dtype": _plain(dtype)},
    )


def _special_tokens(
    tokenizer: "Tokenizer", folder: Path | None, trust_remote_code: bool = False, ends: int | list[int] | None = None
) -> SpecialTokens:
    """As transformers reads them from a model's folder; without one, of the suite's own tokenizer.

    Args:
        tokenizer: of the model.
        folder: that names its special tokens.
        trust_remote_code: whether code that the folder brings may run.
        ends: what generated text ends at besides EOS.
    """
    backend, bos, eos = tokenizer, None, None
    if folder is not None:
        from transformers import AutoTokenizer

        with reading(f"the tokenizer of {folder}"):
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        backend, bos, eos = getattr(loaded, "backend_tokenizer", tokenizer), loaded.bos_token_id, loaded.eos_token_id
    if bos is None and eos is None:
        bos = eos = tokenizer.token_to_id(BOS)  # a document of the suite ends where the next one begins
    leading = leading_special_token(backend)
    prefix = next((i for i in (bos, eos, leading) if i is not None), None)
    stops = {eos, *(ends if isinstance(ends, list) else [ends])}
    return SpecialTokens(leading, prefix, frozenset(i for i in stops if i is not None))


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
