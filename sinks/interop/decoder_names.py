"""The parameters of the suite's decoder by their names in transformers' Llama, Qwen, Mistral and gpt-oss."""

from torch import nn

from sinks.errors import UserError
from sinks.models.decoder import Decoder

WHOLE = {
    "embedding.weight": "model.embed_tokens.weight",
    "head_norm.norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
MODULES = {
    "attention_norm.norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward_norm.norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "feed_forward.router": "mlp.router",
}
PARAMETERS = {
    "attention.normalizer.sink": "self_attn.sinks",
    "feed_forward.gate_up": "mlp.experts.gate_up_proj",
    "feed_forward.gate_up_bias": "mlp.experts.gate_up_proj_bias",
    "feed_forward.down": "mlp.experts.down_proj",
    "feed_forward.down_bias": "mlp.experts.down_proj_bias",
}


def transformers_name(name: str) -> str:
    """The name that a decoder's parameter has in a transformers model.

    Raises:
        UserError: if it has none there.
    """
    if name in WHOLE:
        return WHOLE[name]
    if name.startswith("blocks."):
        _, layer, within = name.split(".", 2)
        module, _, kind = within.rpartition(".")
        found = PARAMETERS.get(within) or (f"{MODULES[module]}.{kind}" if module in MODULES else None)
        if found is not None:
            return f"model.layers.{layer}.{found}"
    raise UserError(f"the parameter {name} has no counterpart in transformers: export a variant without it")


def parameters_by_transformers_name(decoder: Decoder) -> dict[str, nn.Parameter]:
    """Every parameter, a tied one once, as the embedding.

    Raises:
        UserError: naming the first that has no counterpart.
    """
    return {transformers_name(name): parameter for name, parameter in decoder.named_parameters()}
