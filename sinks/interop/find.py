"""The sites of whatever a module holds: parts of the suite, or a transformers model."""

import sys
from typing import TYPE_CHECKING

from torch import nn

from sinks.errors import UserError
from sinks.observe import Site, by_document, sites_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_sites(
    module: nn.Module, document_start: int | None = None, skip_unknown_documents: bool = False
) -> list[Site]:
    """The suite's own sites in a module; if there are none, those of the transformers model that it holds.

    Runs a transformers model once over 8 tokens. Imports transformers only where the module can hold a model of it.

    Args:
        module: e.g. a LightningModule, on its device.
        document_start: id of the first token of every document, to read each document of a row on its own; see
            `by_document`.
        skip_unknown_documents: whether rows of a transformers model that are packed without showing where documents
            start are left unread, with a warning; otherwise they are an error.

    Raises:
        UserError: if the module holds several transformers models, or one that cannot be read, or if documents cannot
            be found.
    """
    own = sites_of(module)
    model = None if own else find_model(module)
    if model is None:
        return own if document_start is None else by_document(own, module, document_start)
    from sinks.interop.sites import huggingface_sites

    return huggingface_sites(model, document_start=document_start, skip_unknown_documents=skip_unknown_documents)


def find_model(module: nn.Module) -> "PreTrainedModel | None":
    """The transformers model that a module is or holds; None if it holds none.

    Raises:
        UserError: if the module holds several.
    """
    if "transformers" not in sys.modules:
        return None
    from transformers import PreTrainedModel

    held = {name: part for name, part in module.named_modules() if isinstance(part, PreTrainedModel)}
    outer = {n: m for n, m in held.items() if not any(n != o and _inside(n, o) for o in held)}
    if len(outer) > 1:
        raise UserError(
            f"the module holds {len(outer)} transformers models ({', '.join(outer)}), but one is what is read: "
            "give one of them"
        )
    return next(iter(outer.values()), None)


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(f"{outer}.")
