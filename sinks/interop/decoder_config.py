"""The transformers configuration of a decoder: the inverse of `decoder_arguments`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sinks.errors import UserError
from sinks.models.attention import Attention
from sinks.models.attention_gates import NoGate
from sinks.models.clips import NoClip
from sinks.models.decoder import Architecture, Block, Decoder
from sinks.models.exclusion import NoExclusion
from sinks.models.experts import Experts
from sinks.models.feed_forward import SwiGLU
from sinks.models.key_gates import NoKeyGate
from sinks.models.normalizers import LearnableSink, Softmax
from sinks.models.norms import RMSNorm
from sinks.models.rope import Frequencies, Linear, Llama3, Yarn


class NoCounterpart(UserError):
    """There is no transformers model that computes the same."""

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no transformers model with {what}: export a variant without it")


class Family(NamedTuple):
    """A class of transformers, and the shapes that it has.

    Args:
        model_type: of config.json.
        kind: class of the model.
        parts: classes of normalizer and feed-forward.
        qk_norm: whether queries and keys are normed.
        biases: values of `Architecture.bias`.
        windows: of layers: "none", "all" (the same in all layers), or "some".
    """

    model_type: str
    kind: str
    parts: tuple[type, type]
    qk_norm: bool
    biases: tuple[Any, ...]
    windows: tuple[str, ...]


GPT_OSS_WINDOW = 128
DENSE, SPARSE = (Softmax, SwiGLU), (LearnableSink, Experts)
ANY_WINDOWS = ("none", "all", "some")
FAMILIES = (
    Family("llama", "LlamaForCausalLM", DENSE, False, (False, True, "attention", "feed_forward"), ("none",)),
    Family("mistral", "MistralForCausalLM", DENSE, False, (False,), ("all",)),
    Family("qwen2", "Qwen2ForCausalLM", DENSE, False, ("qkv",), ANY_WINDOWS),
    Family("qwen3", "Qwen3ForCausalLM", DENSE, True, (False, "attention"), ANY_WINDOWS),
    Family("gpt_oss", "GptOssForCausalLM", SPARSE, False, (False, "attention"), ANY_WINDOWS),
)


def config_of(decoder: Decoder, architecture: Architecture) -> dict[str, Any]:
    """config.json of the transformers model that computes what a decoder does.

    Args:
        decoder: built, on any device.
        architecture: that it was built from.

    Raises:
        UserError: naming what transformers has no counterpart for.
    """
    blocks = blocks_of(decoder)
    attention, feed_forward = attention_of(blocks[0]), blocks[0].feed_forward
    for block in blocks:
        _require_known_parts(block)
    windows = [attention_of(block).config.window for block in blocks]
    if any(attention_of(block).config.rope is None for block in blocks):
        raise NoCounterpart("a layer without rotary positions, or with learned ones")
    shape = attention.config
    if shape.scale not in (None, shape.head_dim**-0.5):
        raise NoCounterpart("an attention_scale of its own")
    family = _family(attention, feed_forward, architecture, windows)
    config = sizes_of(decoder, architecture) | {
        "architectures": [family.kind],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "rms_norm_eps": _eps(decoder),
        "attention_bias": shape.out_bias,
    }
    if family.model_type == "llama":
        if architecture.d_model % shape.n_heads:
            raise NoCounterpart(f"d_model {architecture.d_model} that n_heads {shape.n_heads} does not divide")
        config |= {"mlp_bias": architecture.bias in (True, "feed_forward")}
    else:
        config |= _windows(family.model_type, windows)
    if isinstance(feed_forward, Experts):
        config |= {"num_local_experts": feed_forward.experts, "num_experts_per_tok": feed_forward.chosen}
        config |= {"swiglu_alpha": feed_forward.alpha, "swiglu_limit": feed_forward.limit}
    return config


def sizes_of(decoder: Decoder, architecture: Architecture) -> dict[str, Any]:
    """Entries of config.json that do not depend on the parts of the blocks.

    Raises:
        UserError: if transformers has no such rotary positions.
    """
    shapes = [attention_of(block).config for block in blocks_of(decoder)]
    rotaries = [attention_of(block).rotary for block in blocks_of(decoder) if attention_of(block).config.rope]
    if architecture.rope_fraction != 1:
        raise NoCounterpart("a rope_fraction of its own")
    return {
        "dtype": "float32",
        "vocab_size": decoder.embedding.num_embeddings,
        "hidden_size": architecture.d_model,
        "intermediate_size": architecture.ffn_hidden,
        "num_hidden_layers": architecture.n_layers,
        "num_attention_heads": shapes[0].n_heads,
        "num_key_value_heads": shapes[0].n_kv_heads,
        "head_dim": shapes[0].head_dim,
        "max_position_embeddings": decoder.context_length,
        "initializer_range": architecture.init_std,
        "tie_word_embeddings": architecture.tied_embeddings,
        "rope_parameters": {"rope_theta": architecture.rope_base}
        | (_rope(rotaries[0].frequencies) if rotaries else {"rope_type": "default"}),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def blocks_of(decoder: Decoder) -> list[Block]:
    """The blocks, typed."""
    return [block for block in decoder.blocks if isinstance(block, Block)]


def attention_of(block: Block) -> Any:
    """The attention of a block.

    Raises:
        UserError: if it has another mixer.
    """
    if type(block.attention) is not Attention:
        raise NoCounterpart(f"mixer {type(block.attention).__name__}")
    return block.attention


def _require_known_parts(block: Block) -> None:
    attention = attention_of(block)
    require_no_output_norm(block)
    known = {
        "norm": (block.attention_norm.norm, (RMSNorm,)),
        "feed_forward_norm": (block.feed_forward_norm.norm, (RMSNorm,)),
        "normalizer": (attention.normalizer, (Softmax, LearnableSink)),
        "attention_gate": (attention.gate, (NoGate,)),
        "exclusion": (attention.exclusion, (NoExclusion,)),
        "key_gate": (attention.key_gate, (NoKeyGate,)),
        "residual_clip": (block.attention_clip, (NoClip,)),
        "feed_forward": (block.feed_forward, (SwiGLU, Experts)),
    }
    for name, (part, classes) in known.items():
        if type(part) not in classes:
            raise NoCounterpart(f"{name} {type(part).__name__}")
    if isinstance(attention.normalizer, LearnableSink) and attention.normalizer.sink_scale != 1:
        raise NoCounterpart(f"LearnableSink of sink_scale {attention.normalizer.sink_scale} (gpt-oss has 1)")


def require_no_output_norm(block: Block) -> None:
    """Check that what a sublayer adds to the residual stream is not normed.

    Raises:
        UserError: if it is.
    """
    for norm in block.output_norms:
        raise NoCounterpart(f"output_norm {type(norm).__name__}")


def _family(attention: Any, feed_forward: Any, architecture: Architecture, windows: Sequence[int | None]) -> Family:
    kinds = set(windows)
    spread = "none" if kinds == {None} else "some" if None in kinds else "all"
    width_of(windows)
    parts = (type(attention.normalizer), type(feed_forward))
    for family in FAMILIES:
        fits = family.parts == parts and family.qk_norm == architecture.qk_norm
        if fits and architecture.bias in family.biases and spread in family.windows:
            return family
    raise NoCounterpart(
        f"{parts[0].__name__}, {parts[1].__name__}, qk_norm {architecture.qk_norm}, bias {architecture.bias} and "
        f"windows in {spread} of its layers"
    )


def _eps(decoder: Decoder) -> float:
    norms = [module for module in decoder.modules() if isinstance(module, RMSNorm)]
    if type(decoder.head_norm.norm) is not RMSNorm:
        raise NoCounterpart(f"head_norm {type(decoder.head_norm.norm).__name__}")
    found = sorted({norm.eps for norm in norms})
    if len(found) > 1:
        raise NoCounterpart(f"norms of several eps ({', '.join(map(str, found))})")
    return found[0]


def _rope(frequencies: Frequencies) -> dict[str, Any]:
    """rope_parameters of the frequencies, but for the base."""
    if type(frequencies) is Frequencies:
        return {"rope_type": "default"}
    if type(frequencies) is Linear:
        return {"rope_type": "linear", "factor": frequencies.factor}
    if type(frequencies) is Llama3:
        turns = {"low_freq_factor": frequencies.low, "high_freq_factor": frequencies.high}
        return {"rope_type": "llama3", "factor": frequencies.factor, **turns} | _original(frequencies)
    if type(frequencies) is Yarn:
        turns = {"beta_fast": frequencies.fast, "beta_slow": frequencies.slow, "truncate": frequencies.truncate}
        length = {"attention_factor": frequencies.attention_factor}
        return {"rope_type": "yarn", "factor": frequencies.factor, **turns, **length} | _original(frequencies)
    raise NoCounterpart(f"rope_frequencies {type(frequencies).__name__}")


def _original(frequencies: Llama3 | Yarn) -> dict[str, int]:
    return {"original_max_position_embeddings": frequencies.original_context}


def width_of(windows: Sequence[int | None]) -> int | None:
    """Of the layers that have a window; None if none has.

    Raises:
        UserError: if there are several widths, for which config.json has no place.
    """
    widths = sorted({window for window in windows if window is not None})
    if len(widths) > 1:
        raise NoCounterpart(f"windows of several widths ({', '.join(map(str, widths))})")
    return widths[0] if widths else None


def layer_types(windows: Sequence[int | None]) -> list[str]:
    """As config.json has them."""
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def _windows(model_type: str, windows: Sequence[int | None]) -> dict[str, Any]:
    width = width_of(windows)
    if model_type == "mistral":
        return {"sliding_window": width}
    kinds = layer_types(windows)
    if model_type == "gpt_oss":  # which needs a width where no layer has a window too
        return {"sliding_window": width or GPT_OSS_WINDOW, "layer_types": kinds}
    return {"sliding_window": width, "layer_types": kinds, "use_sliding_window": width is not None}
