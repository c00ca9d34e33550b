"""The configuration of `modeling_sinks` for a decoder that no model of transformers computes."""

from typing import Any

from torch import nn

from sinks.interop.decoder_config import (
    NoCounterpart,
    attention_of,
    blocks_of,
    layer_types,
    require_no_output_norm,
    sizes_of,
    width_of,
)
from sinks.models.attention_gates import (
    AmplifyingElementwiseGate,
    AmplifyingHeadwiseGate,
    AttentionGate,
    ElementwiseGate,
    HeadwiseGate,
    IdentityElementwiseGate,
    IdentityHeadwiseGate,
    NoGate,
    UnconditionalGate,
)
from sinks.models.clips import NoClip
from sinks.models.decoder import Architecture, Block, Decoder
from sinks.models.exclusion import NoExclusion
from sinks.models.feed_forward import GELU, SigmoidGLU, SwiGLU
from sinks.models.gated_norm import ACTIVATIONS, AmplifyingGatedNorm, GatedNorm, IdentityGatedNorm
from sinks.models.key_gates import NoKeyGate
from sinks.models.normalizers import LearnableSink, Normalizer, OffByOne, SoftCap, Softmax
from sinks.models.norms import PreAffine, RMSNorm
from sinks.models.positions import LearnedPositions

FILE = "modeling_sinks.py"
AUTO_MAP = {"AutoConfig": "modeling_sinks.SinksConfig", "AutoModelForCausalLM": "modeling_sinks.SinksForCausalLM"}
GATES: dict[type[AttentionGate], str] = {
    HeadwiseGate: "headwise", AmplifyingHeadwiseGate: "headwise", IdentityHeadwiseGate: "headwise",
    ElementwiseGate: "elementwise", AmplifyingElementwiseGate: "elementwise", IdentityElementwiseGate: "elementwise",
    UnconditionalGate: "unconditional",
}  # fmt: skip
SINKS: dict[type[Normalizer], str | None] = {
    Softmax: None, SoftCap: None, LearnableSink: "learned", OffByOne: "zero",
}  # fmt: skip
MLPS = {SwiGLU: ("gated", "silu"), SigmoidGLU: ("gated", "sigmoid"), GELU: ("plain", "gelu")}
GATED_NORMS = {GatedNorm, AmplifyingGatedNorm, IdentityGatedNorm}


def remote_config_of(decoder: Decoder, architecture: Architecture) -> dict[str, Any]:
    """config.json with which `modeling_sinks` computes what a decoder does.

    Args:
        decoder: built, on any device.
        architecture: that it was built from.

    Raises:
        UserError: naming what `modeling_sinks` lacks too.
    """
    blocks = blocks_of(decoder)
    sizes, parts = sizes_of(decoder, architecture), [_parts(block) for block in blocks]
    if any(part != parts[0] for part in parts):
        raise NoCounterpart("blocks of several kinds")
    windows = [attention_of(block).config.window for block in blocks]
    return sizes | parts[0] | {
        "architectures": ["SinksForCausalLM"],
        "model_type": "sinks_decoder",
        "auto_map": AUTO_MAP,
        "head_norm": _norm(decoder.head_norm.norm),
        "layer_types": layer_types(windows),
        "sliding_window": width_of(windows),
        "learned_positions": isinstance(decoder.positions, LearnedPositions),
        "rope_layers": [attention_of(block).config.rope is not None for block in blocks],
    }  # fmt: skip


def _parts(block: Block) -> dict[str, Any]:
    """What a block consists of; windows and positions apart."""
    attention, feed_forward = attention_of(block), block.feed_forward
    shape, normalizer, gate = attention.config, attention.normalizer, attention.gate
    require_no_output_norm(block)
    _require("residual_clip", block.attention_clip, {NoClip})
    _require("normalizer", normalizer, SINKS)
    _require("exclusion", attention.exclusion, {NoExclusion})
    _require("key_gate", attention.key_gate, {NoKeyGate})
    _require("feed_forward", feed_forward, MLPS)
    norm = _norm(block.attention_norm.norm)
    if _norm(block.feed_forward_norm.norm) != norm:
        raise NoCounterpart("a feed_forward_norm of its own")
    mlp, activation = MLPS[type(feed_forward)]  # type: ignore[index]
    return {
        "norm": norm,
        "attention_gate": None if type(gate) is NoGate else _gate(gate),
        "attention_sink": SINKS[type(normalizer)],
        "attn_logit_softcapping": getattr(normalizer, "cap", None),
        "attention_scale": shape.head_dim**-0.5 if shape.scale is None else shape.scale,
        "attention_bias": shape.bias,
        "attention_out_bias": shape.out_bias,
        "qk_norm_eps": shape.qk_norm_eps if shape.qk_norm else None,
        "mlp": mlp,
        "hidden_act": activation,
        "mlp_bias": feed_forward.up.bias is not None,  # type: ignore[union-attr]
    }


def _norm(norm: Any) -> dict[str, Any]:
    _require("norm", norm, {RMSNorm, PreAffine, *GATED_NORMS})
    if type(norm) not in GATED_NORMS:
        return {"kind": "pre_affine" if type(norm) is PreAffine else "rms", "eps": norm.eps}
    activation = next(name for name, function in ACTIVATIONS.items() if function is norm.activation)
    return {
        "kind": "gated",
        "norm": _norm(norm.norm),
        "rank": norm.down.out_features,
        "granularity": "elementwise" if norm.up.out_features == norm.d_model else "tensorwise",
        "activation": "linear" if activation == "identity" else activation,
        "offset": norm.offset,
        "factor": norm.limit,
    }


def _gate(gate: Any) -> dict[str, Any]:
    _require("attention_gate", gate, GATES)
    found = {"kind": GATES[type(gate)], "offset": getattr(gate, "offset", 0.0), "factor": gate.limit}
    dimensions = getattr(gate, "dimensions", None)
    return found if dimensions is None else found | {"dimensions": dimensions}


def _require(name: str, part: nn.Module, classes: Any) -> None:
    if type(part) not in classes:
        raise NoCounterpart(f"{name} {type(part).__name__}")
