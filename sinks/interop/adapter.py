"""What a model's parts are, where it cannot be found by looking at tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.interop.seam import AttentionCall


@dataclass(frozen=True)
class Gate:
    """A gate on the output of attention: limit * sigmoid.

    Args:
        module: whose output holds the gate.
        read: that output, H and dv -> pre-activations [B, H, T] or [B, H, T, dv].
        limit: of its values.
    """

    module: nn.Module
    read: Callable[[Tensor, int, int], Tensor]
    limit: float = 1.0

    def values(self, output: Tensor, heads: int, width: int) -> Tensor:
        """Of the module's output [B, T, ...]: [B, H, T] or [B, H, T, dv]."""
        return self.limit * torch.sigmoid(self.read(output, heads, width))


class Adapter:
    """Names the parts of a model; this class finds all of them in a transformers causal LM.

    For an architecture of your own, override what does not fit. A model that does not call transformers' attention
    interface needs `attention` and `call`; one that is no transformers model also needs `blocks` and `run`:

        class MyAdapter(Adapter):
            def run(self, model, tokens):
                model(tokens)

            def blocks(self, model):
                return model.layers

            def attention(self, block):
                return block.attention

            def call(self, attention, args, kwargs):
                q, k, v = attention.project(args[0])  # [B, H, T, d]
                return AttentionCall(q, k, v)

        sites = huggingface_sites(model, MyAdapter())

    The norms that read the stream, their gains, the output projection and its gate are found by tensors in a short
    pass; `norms`, `final_norm` and `gate` name them where that fails. What `call` returns is compared with what the
    output projection then reads.
    """

    def run(self, model: nn.Module, tokens: Tensor) -> None:
        """Run the model on tokens [B, T]."""
        model(input_ids=tokens, use_cache=False)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The blocks of the residual stream, first to last; each gets it as its first tensor [B, T, D].

        Raises:
            UserError: if there is no list of as many blocks as the configuration has layers.
        """
        config = getattr(model, "config", None)
        text = config.get_text_config(decoder=True) if config is not None else None
        layers = getattr(text, "num_hidden_layers", None)
        for module in model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return list(module)
        raise UserError(
            f"{type(model).__name__} has no list of {layers} blocks, but needs one to be read: "
            "give huggingface_sites an Adapter with `blocks`"
        )

    def attention(self, block: nn.Module) -> nn.Module | None:
        """The attention module for which `call` is given."""
        return None

    def call(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionCall:
        """The attention that a module computes of its arguments, if it does not call transformers' interface."""
        raise NotImplementedError

    def norms(self, block: nn.Module) -> Mapping[str, nn.Module] | None:
        """Norms of a block that read the stream by name, `attention.norm` and `feed_forward.norm`; None: find them."""
        return None

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """The norm after the last block; None: find it."""
        return None

    def gate(self, attention: nn.Module) -> Gate | None:
        """The gate of an attention module; None: find it."""
        return None
