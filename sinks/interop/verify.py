"""Whether what is read of a model can be believed: its attention is counted, and its logits are compared with eager."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinks.errors import UserError
from sinks.interop.classify import evaluating
from sinks.interop.seam import implementation
from sinks.interop.sites import huggingface_sites
from sinks.observe import Reader

_TOKENS = 64  # eager needs T x T memory


def verify(model: PreTrainedModel, tokens: Tensor) -> None:
    """Check on a short row that the statistics are those of the model's own forward pass.

    Args:
        model: a transformers causal LM.
        tokens: rows [B, T] of the text; the first 64 tokens of the first row are used.

    Raises:
        UserError: if a layer that should attend does not call the seam, or the logits differ from those of
            transformers' eager attention by more than 1e-5 of the largest logit (four roundings in half precision).
    """
    row = tokens[:1, :_TOKENS].to(model.device)
    reader = Reader(huggingface_sites(model), groups=["mass"])
    with torch.no_grad(), evaluating(model):
        with reader.reading():
            own = model(input_ids=row, use_cache=False).logits.float()
        with implementation(model, "eager"):
            expected = model(input_ids=row, use_cache=False).logits.float()
    read, layers = len(reader.totals()), len(reader.names["attention"])
    if read != layers:
        raise UserError(f"{read} of {layers} attention layers reported, but all must: do not skip layers")
    error = float((own - expected).abs().max() / expected.abs().max())
    limit = max(1e-5, 4 * torch.finfo(model.dtype).eps)
    if not error <= limit:
        raise UserError(
            f"logits of {type(model).__name__} differ from eager attention by {error:.1e} of the largest, but at most "
            f"{limit:.0e} can be believed: give huggingface_sites an Adapter with `attention` and `call`"
        )
