"""The five named families: documented presets of `CausalLM`, one per answer to sinks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from sinks.errors import UserError
from sinks.families.causal_lm import CausalLM
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import AttentionGate, ElementwiseGate, HeadwiseGate, NoGate, UnconditionalGate
from sinks.models.clips import Clamp, ClippedNorm, FirstTokenClamp, NoClip, OtherTokensClamp, ResidualClip
from sinks.models.gated_norm import Activation, GatedNorm, GateDyT
from sinks.models.normalizers import (
    ClippedSoftmax,
    KeyValueBias,
    LearnableSink,
    Normalizer,
    OffByOne,
    Sigmoid,
    SoftCap,
    Softmax,
)
from sinks.models.norms import DyT, IdentityNorm, Norm, PreAffine, RMSNorm


class Baseline(CausalLM):
    """Softmax attention and RMSNorm: attention sinks and residual sinks form."""

    def __init__(self, vocab_size: int, context_length: int, **kwargs: Any) -> None:
        super().__init__(
            vocab_size,
            context_length,
            normalizer=Softmax,
            attention_gate=NoGate,
            norm=RMSNorm,
            head_norm=RMSNorm,
            residual_clip=NoClip,
            **kwargs,
        )


class NoNorm(CausalLM):
    """Without normalizers: sigmoid attention, pointwise DyT (or nothing) in place of RMSNorm.

    Args:
        vocab_size: number of token ids; taken from the data.
        context_length: tokens seen; taken from the data.
        attention: the attention side; softmax is the baseline's.
        residual: the residual side; rms_norm is the baseline's.
        dyt_alpha: initial slope of DyT.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        attention: Literal["softmax", "sigmoid"] = "sigmoid",
        residual: Literal["rms_norm", "dyt", "none"] = "dyt",
        dyt_alpha: float = 0.5,
        **kwargs: Any,
    ) -> None:
        norms: dict[str, Callable[[int], Norm]] = {
            "rms_norm": RMSNorm,
            "dyt": partial(DyT, alpha=dyt_alpha),
            "none": IdentityNorm,
        }
        super().__init__(
            vocab_size,
            context_length,
            normalizer={"softmax": Softmax, "sigmoid": Sigmoid}[attention],
            attention_gate=NoGate,
            norm=norms[residual],
            head_norm=norms[residual],
            residual_clip=NoClip,
            **kwargs,
        )


class Clipped(CausalLM):
    """Clipped outliers: in attention weights or logits, in the residual stream, or in the norms' input.

    Args:
        vocab_size: number of token ids; taken from the data.
        context_length: tokens seen; taken from the data.
        attention: the attention side; softmax is the baseline's.
        softmax_alpha: clipped softmax: gamma is -softmax_alpha / context_length.
        soft_cap: soft cap: largest logit.
        residual: the residual side: nothing; the stream after each addition, at all tokens, at token 0 alone or at all
            others; or the norms' input only.
        residual_threshold: of the stream: largest |h|, e.g. half of the 99.9th percentile of a baseline
            (`residual_p999` of its summary.json).
        norm_medians: norm_input: threshold in units of each token's median |h|.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        attention: Literal["softmax", "clipped_softmax", "soft_cap"] = "softmax",
        softmax_alpha: float = 4.0,
        soft_cap: float = 20.0,
        residual: Literal["none", "stream", "first_token", "other_tokens", "norm_input"] = "stream",
        residual_threshold: float | None = None,
        norm_medians: float = 4.0,
        **kwargs: Any,
    ) -> None:
        normalizers: dict[str, Callable[[AttentionConfig], Normalizer]] = {
            "softmax": Softmax,
            "clipped_softmax": partial(ClippedSoftmax, alpha=softmax_alpha),
            "soft_cap": partial(SoftCap, cap=soft_cap),
        }
        norm: Callable[[int], Norm] = RMSNorm
        residual_clip: Callable[[str], ResidualClip] = NoClip
        clamps = {"stream": Clamp, "first_token": FirstTokenClamp, "other_tokens": OtherTokensClamp}
        if residual == "norm_input":
            norm = partial(ClippedNorm, medians=norm_medians)
        if residual in clamps:
            if residual_threshold is None:
                raise UserError(
                    "residual clipping has no threshold: give --model.residual_threshold, e.g. half of residual_p999 "
                    "in a finished baseline's summary.json"
                )
            residual_clip = partial(clamps[residual], threshold=residual_threshold)
        super().__init__(
            vocab_size,
            context_length,
            normalizer=normalizers[attention],
            attention_gate=NoGate,
            norm=norm,
            head_norm=norm,
            residual_clip=residual_clip,
            **kwargs,
        )


class SinkAbsorbed(CausalLM):
    """Sinks absorbed into parameters: a sink logit or learned key in attention, PreAffine before the norms.

    Args:
        vocab_size: number of token ids; taken from the data.
        context_length: tokens seen; taken from the data.
        attention: the attention side; softmax is the baseline's.
        sink_scale: learnable sink: factor between the parameter and the logit.
        learn_value: key-value bias: whether the value is learned too.
        residual: the residual side; rms_norm is the baseline's.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        attention: Literal["softmax", "learnable_sink", "off_by_one", "key_value_bias"] = "learnable_sink",
        sink_scale: float = 1.0,
        learn_value: bool = True,
        residual: Literal["rms_norm", "pre_affine"] = "pre_affine",
        **kwargs: Any,
    ) -> None:
        norm = {"rms_norm": RMSNorm, "pre_affine": PreAffine}[residual]
        normalizers: dict[str, Callable[[AttentionConfig], Normalizer]] = {
            "softmax": Softmax,
            "learnable_sink": partial(LearnableSink, sink_scale=sink_scale),
            "off_by_one": OffByOne,
            "key_value_bias": partial(KeyValueBias, learn_value=learn_value),
        }
        super().__init__(
            vocab_size,
            context_length,
            normalizer=normalizers[attention],
            attention_gate=NoGate,
            norm=norm,
            head_norm=norm,
            residual_clip=NoClip,
            **kwargs,
        )


class Gated(CausalLM):
    """Explicit gates in place of sinks: an output gate on attention, a low-rank gate after each block's norms.

    Args:
        vocab_size: number of token ids; taken from the data.
        context_length: tokens seen; taken from the data.
        attention_gate: the attention side; unconditional is the control that cannot rescale by context.
        initial_attention_gate: value at which the attention gate starts.
        norm_gate: the residual side; gate_dyt gates a pointwise DyT.
        norm_rank: width of the low-rank gate.
        norm_granularity: one gate per channel or per token.
        norm_activation: of the gate; all but the sigmoid were unstable in the paper.
        initial_norm_gate: value at which the norm gate starts.
        gate_head: whether the norm before the head is gated too.
        dyt_alpha: gate_dyt: initial slope of DyT.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        attention_gate: Literal["none", "headwise", "elementwise", "unconditional"] = "elementwise",
        initial_attention_gate: float = 0.5,
        norm_gate: Literal["none", "gated_norm", "gate_dyt"] = "gated_norm",
        norm_rank: int = 16,
        norm_granularity: Literal["elementwise", "tensorwise"] = "elementwise",
        norm_activation: Activation = "sigmoid",
        initial_norm_gate: float = 0.5,
        gate_head: bool = False,
        dyt_alpha: float = 0.5,
        **kwargs: Any,
    ) -> None:
        gates: dict[str, Callable[[AttentionConfig], AttentionGate]] = {
            "none": NoGate,
            "headwise": partial(HeadwiseGate, initial_gate=initial_attention_gate),
            "elementwise": partial(ElementwiseGate, initial_gate=initial_attention_gate),
            "unconditional": partial(UnconditionalGate, initial_gate=initial_attention_gate),
        }
        norms: dict[str, Callable[[int], Norm]] = {
            "none": RMSNorm,
            "gated_norm": partial(
                GatedNorm,
                rank=norm_rank,
                granularity=norm_granularity,
                activation=norm_activation,
                initial_gate=initial_norm_gate,
            ),
            "gate_dyt": partial(GateDyT, rank=norm_rank, initial_gate=initial_norm_gate, alpha=dyt_alpha),
        }
        ungated: Callable[[int], Norm] = partial(DyT, alpha=dyt_alpha) if norm_gate == "gate_dyt" else RMSNorm
        super().__init__(
            vocab_size,
            context_length,
            normalizer=Softmax,
            attention_gate=gates[attention_gate],
            norm=norms[norm_gate],
            head_norm=norms[norm_gate] if gate_head else ungated,
            residual_clip=NoClip,
            **kwargs,
        )
