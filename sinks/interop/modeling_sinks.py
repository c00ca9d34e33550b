"""A Llama-shaped decoder with gates, second gains and learned sinks, which no model of transformers has.

`sinks export` writes this file beside config.json, which says what each part is. It needs torch and transformers alone:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

B batch, T tokens, D width of the residual stream, H query heads, d width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.utils.generic import can_return_tuple

IMPLEMENTATION = "_attn_implementation"  # of a configuration; transformers has no public name to read it


class SinksConfig(PreTrainedConfig):
    """Sizes under Llama's names, and what the parts are.

    norm, head_norm: {kind: rms or pre_affine, eps}, or {kind: gated, norm: one of these, rank, granularity: elementwise
        or tensorwise, activation, offset, factor}.
    attention_gate: {kind: headwise, elementwise or unconditional, offset, factor}, or null; with `dimensions` if only
        that many of the input's are read.
    attention_sink: learned, zero or null.
    attention_scale: factor of the logits q . k. attn_logit_softcapping: their limit, or null.
    attention_bias: of the projections to queries, keys and values; attention_out_bias: of the one back.
    qk_norm_eps: of norms of queries and keys, or null for no such norms.
    rope_layers: per layer, whether queries and keys rotate. learned_positions: whether a row per position is added.
    mlp: gated or plain.
    """

    model_type = "sinks_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    use_cache: bool = True


class RMSNorm(nn.Module):
    """weight * x / rms(x)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class PreAffineRMSNorm(RMSNorm):
    """RMSNorm of pre * x (arXiv:2601.22966)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        self.pre = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pre * x)


class NormGate(nn.Module):
    """factor * act(W_up silu(W_down y) + offset): [B, T, D] -> [B, T, D], or [B, T, 1] if tensorwise."""

    def __init__(self, width: int, rank: int, granularity: str, activation: str, offset: float, factor: float) -> None:
        super().__init__()
        self.offset, self.factor = offset, factor
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width if granularity == "elementwise" else 1, bias=False)
        self.activation = ACT2FN[activation]

    def forward(self, y: Tensor) -> Tensor:
        return self.factor * self.activation(self.up(F.silu(self.down(y))) + self.offset)


class GatedNorm(nn.Module):
    """y = norm(x); y * gate(y) (arXiv:2601.22966)."""

    def __init__(self, width: int, norm: dict[str, Any], **gate: Any) -> None:
        super().__init__()
        self.norm = norm_of(norm, width)
        self.gate = NormGate(width, **gate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y * self.gate(y)


NORMS: dict[str, Any] = {"rms": RMSNorm, "pre_affine": PreAffineRMSNorm, "gated": GatedNorm}


def norm_of(options: dict[str, Any], width: int) -> nn.Module:
    """The norm that an entry of config.json describes."""
    return NORMS[options["kind"]](width, **{name: value for name, value in options.items() if name != "kind"})


class ProjectedGate(nn.Module):
    """Pre-activations W x + offset of the gate of attention's output: [B, T, D] -> [B, T, number of gates].

    x are the first `dimensions` of the input, or all.
    """

    def __init__(self, width: int, gates: int, offset: float, dimensions: int | None = None) -> None:
        super().__init__()
        self.offset, self.dimensions = offset, dimensions
        self.projection = nn.Linear(dimensions or width, gates, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x[..., : self.dimensions]) + self.offset


class UnconditionalGate(nn.Module):
    """Pre-activations that are the same for every token: [B, T, D] -> [B, T, number of gates]."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(gates))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(*x.shape[:2], -1)


def gate_of(options: dict[str, Any], width: int, heads: int, head_dim: int) -> nn.Module:
    """The gate of attention's output that an entry of config.json describes."""
    if options["kind"] == "unconditional":
        return UnconditionalGate(heads * head_dim)
    gates = heads if options["kind"] == "headwise" else heads * head_dim
    return ProjectedGate(width, gates, options["offset"], options.get("dimensions"))


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain torch, with an optional logit `s_aux` [H] that each row may attend to in place of a key.

    Returns:
        Output [B, T, H, d] and weights [B, H, T, keys].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SinksAttention(nn.Module):
    """Grouped-query attention with an optional gate on its output and an optional sink: [B, T, D] -> [B, T, D]."""

    is_causal = True

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.head_dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = heads // kv_heads
        self.sliding_window = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
        self.rotates = config.rope_layers[layer]
        width, inner, kv_inner = config.hidden_size, heads * self.head_dim, kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, inner, config.attention_bias)
        self.k_proj = nn.Linear(width, kv_inner, config.attention_bias)
        self.v_proj = nn.Linear(width, kv_inner, config.attention_bias)
        self.o_proj = nn.Linear(inner, width, config.attention_out_bias)
        eps = config.qk_norm_eps
        self.q_norm = nn.Identity() if eps is None else RMSNorm(self.head_dim, eps)
        self.k_norm = nn.Identity() if eps is None else RMSNorm(self.head_dim, eps)
        gate = config.attention_gate
        self.gate = None if gate is None else gate_of(gate, width, heads, self.head_dim)
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.attention_sink == "learned" else None

    def forward(
        self,
        x: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if self.rotates:
            q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(getattr(self.config, IMPLEMENTATION), eager_attention)
        out, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=self.config.attention_scale,
            sliding_window=self.sliding_window,
            softcap=self.config.attn_logit_softcapping,
            s_aux=self._sink(q),
            **kwargs,
        )
        if self.gate is not None:
            opening = self.config.attention_gate["factor"] * torch.sigmoid(self.gate(x))
            out = out * opening.view(*out.shape[:3], -1)  # one per head, or one per channel
        return self.o_proj(out.flatten(2)), weights

    def _sink(self, q: Tensor) -> Tensor | None:
        return q.new_zeros(q.shape[1]) if self.config.attention_sink == "zero" else self.sinks


class PlainMLP(nn.Module):
    """W_down act(W_up x)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class SinksDecoderLayer(GradientCheckpointingLayer):
    """One pre-norm block: [B, T, D] -> [B, T, D], and attention's weights where it has them."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.input_layernorm = norm_of(config.norm, config.hidden_size)
        self.self_attn = SinksAttention(config, layer)
        self.post_attention_layernorm = norm_of(config.norm, config.hidden_size)
        self.mlp = LlamaMLP(config) if config.mlp == "gated" else PlainMLP(config)

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        update, weights = self.self_attn(self.input_layernorm(x), **kwargs)
        x = x + update
        return x + self.mlp(self.post_attention_layernorm(x)), weights


class SinksPreTrainedModel(PreTrainedModel):
    """What transformers may do with the models below."""

    config_class = SinksConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SinksDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_attention_backend = True
    _supports_flex_attn = True

    @property
    def _supports_sdpa(self) -> bool:
        """It would drop a sink, and a limit of the logits."""
        return self.config.attention_sink is None and self.config.attn_logit_softcapping is None

    @property
    def _supports_flash_attn(self) -> bool:
        """Some of its versions would drop a sink."""
        return self.config.attention_sink is None


class SinksModel(SinksPreTrainedModel):
    """Token ids [B, T] -> the stream after the last norm [B, T, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.learned_positions
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(SinksDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = norm_of(config.head_norm, config.hidden_size)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if (self.config.use_cache if use_cache is None else use_cache) and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        if self.embed_positions is not None:
            x = x + self.embed_positions(position_ids)
        masks = self._masks(x, attention_mask, past_key_values, position_ids)
        angles = self.rotary_emb(x, position_ids)
        states, maps = [x], []
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            x, weights = layer(
                x,
                position_embeddings=angles,
                attention_mask=masks[kind],
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
            states.append(x)
            maps.append(weights)
        x = self.norm(x)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        mapped = self.config.output_attentions if output_attentions is None else output_attentions
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states[:-1], x) if wanted else None,  # the last one normed, as transformers has it
            attentions=tuple(maps) if mapped else None,
        )

    def _masks(self, x: Tensor, mask: Any, past_key_values: Any, position_ids: Tensor) -> dict[str, Tensor | None]:
        """By kind of layer; `generate` may have made them."""
        if isinstance(mask, dict):
            return mask
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        options = {"attention_mask": mask, "past_key_values": past_key_values, "position_ids": position_ids}
        return {
            kind: makers[kind](config=self.config, inputs_embeds=x, **options) for kind in set(self.config.layer_types)
        }


class SinksForCausalLM(SinksPreTrainedModel, GenerationMixin):
    """Token ids [B, T] -> logits [B, T, vocabulary]."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = SinksModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
