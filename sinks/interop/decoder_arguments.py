"""Arguments of `CausalLM` from a transformers configuration; what the decoder has no counterpart for is rejected."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sinks.errors import UserError
from sinks.models.decoder import Architecture, Biases, LayerOptions
from sinks.models.experts import Experts
from sinks.models.normalizers import LearnableSink
from sinks.models.norms import RMSNorm
from sinks.models.rope import Frequencies, Linear, Llama3, Yarn

Options = Mapping[str, Any]  # of a transformers configuration, as config.json has them
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt_oss")


def arguments_of(config: Options) -> dict[str, Any]:
    """Arguments of `CausalLM`, but for vocabulary and context, that give the model of a transformers configuration.

    Args:
        config: `to_dict()` of a transformers configuration, defaults included.

    Raises:
        UserError: naming what the decoder has no counterpart for.
    """
    family = config["model_type"]
    require_family(family)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UserError(f"the weights are quantized (quant_method {method}): save them dequantized, then import that")
    if config["hidden_act"] != "silu":
        raise UserError(f"hidden_act is {config['hidden_act']!r}, but the decoder's SwiGLU has 'silu' only")
    norm = partial(RMSNorm, eps=config["rms_norm_eps"])
    arguments: dict[str, Any] = {"architecture": _architecture(config), "norm": norm, "head_norm": norm}
    if family == "gpt_oss":
        experts = {"experts": config["num_local_experts"], "chosen": config["num_experts_per_tok"]}
        experts |= {"alpha": config.get("swiglu_alpha", 1.702), "limit": config.get("swiglu_limit", 7.0)}
        arguments |= {"normalizer": LearnableSink, "feed_forward": partial(Experts, **experts)}
    return arguments


def require_family(family: str | None) -> None:
    """Check a model_type.

    Raises:
        UserError: if the decoder has no counterpart of such a model.
    """
    if family not in FAMILIES:
        raise UserError(
            f"a model of type {family!r} has no counterpart in the suite's decoder, only {', '.join(FAMILIES)} have: "
            "analyze it as it is"
        )


def _architecture(config: Options) -> Architecture:
    heads = config["num_attention_heads"]
    rope = _rope_of(config)
    return Architecture(
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn_hidden=config["intermediate_size"],
        rope_base=rope["rope_theta"],
        rope_frequencies=_frequencies(rope, config["max_position_embeddings"]),
        layer_pattern=_pattern([LayerOptions(window) for window in _windows(config)]),
        qk_norm=config["model_type"] == "qwen3",
        qk_norm_eps=config["rms_norm_eps"],
        tied_embeddings=config["tie_word_embeddings"],
        bias=_bias(config),
        init_std=config["initializer_range"],
        embedding_std=config["initializer_range"],
    )


def _bias(config: Options) -> Biases:
    if config["model_type"] == "qwen2":
        return "qkv"
    found: dict[tuple[bool, bool], Biases] = {
        (False, False): False, (True, True): True, (True, False): "attention", (False, True): "feed_forward",
    }  # fmt: skip
    return found[bool(config.get("attention_bias")), bool(config.get("mlp_bias"))]


def _windows(config: Options) -> list[int | None]:
    """Of each layer."""
    window, layers = config.get("sliding_window"), config["num_hidden_layers"]
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if config["model_type"] == "mistral" else "full_attention"] * layers
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise UserError(f"a layer has {kind!r}, but the decoder has sliding_attention and full_attention only")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _pattern(layers: Sequence[LayerOptions]) -> tuple[LayerOptions, ...]:
    """The shortest pattern whose repetition gives the options of all layers; empty for the default."""
    if all(layer == LayerOptions() for layer in layers):
        return ()
    lengths = range(1, len(layers) + 1)
    length = next(n for n in lengths if all(layer == layers[i % n] for i, layer in enumerate(layers)))
    return tuple(layers[:length])


def _rope_of(config: Options) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or {})
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        family, factor = config["model_type"], rope["partial_rotary_factor"]
        raise UserError(f"partial_rotary_factor is {factor}, but heads of {family!r} models rotate whole: give 1")
    return rope


def _frequencies(rope: Options, longest: int) -> Callable[[int, float], Frequencies]:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return Frequencies
    if kind not in ("linear", "llama3", "yarn"):
        raise UserError(
            f"rope_type is {kind!r}, but the decoder has default, linear, llama3 and yarn, whose frequencies do not "
            "depend on the length of the text"
        )
    if kind == "linear":
        return partial(Linear, factor=rope["factor"])
    original = rope["original_max_position_embeddings"]
    if kind == "llama3":
        turns = {"low": rope["low_freq_factor"], "high": rope["high_freq_factor"]}
        return partial(Llama3, factor=rope["factor"], original_context=original, **turns)
    factor, length = rope.get("factor") or longest / original, rope.get("attention_factor")
    if length is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        raise UserError("rope_parameters have mscale and mscale_all_dim: give their attention_factor instead")
    return partial(
        Yarn,
        factor=factor,
        original_context=original,
        fast=rope.get("beta_fast") or 32.0,
        slow=rope.get("beta_slow") or 1.0,
        attention_factor=length,
        truncate=rope.get("truncate", True),
    )
