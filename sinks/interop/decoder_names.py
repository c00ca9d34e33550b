"""The parameters of the suite's decoder by their names in transformers' Llama, Qwen, Mistral and gpt-oss.

What these lack, `modeling_sinks` has, under names that continue theirs.
"""

from collections.abc import Mapping

from torch import nn

from sinks.errors import UserError
from sinks.models.decoder import Decoder

# What the name of a parameter begins with, or all of it; in a block without `blocks.{i}.` and `model.layers.{i}.`.
TOP = {
    "embedding": "model.embed_tokens",
    "positions.rows": "model.embed_positions",
    "head_norm.norm": "model.norm",
    "head": "lm_head",
}
BLOCK = {
    "attention_norm.norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.normalizer.sink": "self_attn.sinks",
    "attention.gate": "self_attn.gate",
    "feed_forward_norm.norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
    "feed_forward.router": "mlp.router",
}
# The whole names of parameters that no module of their own holds.
EXPERTS = {
    "feed_forward.gate_up": "mlp.experts.gate_up_proj",
    "feed_forward.gate_up_bias": "mlp.experts.gate_up_proj_bias",
    "feed_forward.down": "mlp.experts.down_proj",
    "feed_forward.down_bias": "mlp.experts.down_proj_bias",
}
for table in (TOP, BLOCK):  # the projections of a norm's gate
    norms = {ours: theirs for ours, theirs in table.items() if ours.endswith("_norm.norm")}
    table |= {f"{ours}.{part}": f"{theirs}.gate.{part}" for ours, theirs in norms.items() for part in ("down", "up")}


def transformers_name(name: str) -> str:
    """The name that a decoder's parameter has in a transformers model.

    Raises:
        UserError: if it has none there.
    """
    if not name.startswith("blocks."):
        found = _renamed(name, TOP)
    else:
        _, layer, within = name.split(".", 2)
        found = EXPERTS.get(within) or _renamed(within, BLOCK)
        found = found and f"model.layers.{layer}.{found}"
    if found is None:
        raise UserError(f"the parameter {name} has no counterpart in transformers: export a variant without it")
    return found


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """A name with its longest beginning that is in a table replaced; None if none is."""
    begin, end = name, ""
    while begin not in table:
        begin, dot, last = begin.rpartition(".")
        if not dot:
            return None
        end = f".{last}{end}"
    return table[begin] + end


def parameters_by_transformers_name(decoder: Decoder) -> dict[str, nn.Parameter]:
    """Every parameter, a tied one once, as the embedding.

    Raises:
        UserError: naming the first that has no counterpart.
    """
    return {transformers_name(name): parameter for name, parameter in decoder.named_parameters()}
