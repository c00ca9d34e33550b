"""Every variant the suite ships, small: what the tests of all variants run over."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from sinks.families import Baseline, CausalLM, Clipped, Gated, NoNorm, SinkAbsorbed
from sinks.models.attention_gates import ActivatedGate, AmplifyingHeadwiseGate, ElementwiseGate, TensorwiseGate
from sinks.models.decoder import Architecture
from sinks.models.derf import Derf
from sinks.models.exclusion import ExclusiveSelfAttention, LearnedExclusion
from sinks.models.feed_forward import GELU, SigmoidGLU, SwiGLU
from sinks.models.gains import GainFreeRMSNorm, ScalarGainRMSNorm, ZeroCenteredRMSNorm
from sinks.models.gated_norm import AmplifyingGatedNorm, GatedNorm
from sinks.models.key_gates import GatedKeys
from sinks.models.layer_norm import LayerNorm
from sinks.models.normalizers import Softpick
from sinks.models.norms import IdentityNorm, Norm, RMSNorm
from sinks.models.seed_norm import SeeDNorm

SMALL = Architecture(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_hidden=24, init_std=0.3)

VARIANTS: dict[str, tuple[type[CausalLM], dict[str, Any]]] = {
    "baseline": (Baseline, {}),
    "sigmoid": (NoNorm, {"residual": "rms_norm"}),
    "dyt": (NoNorm, {"attention": "softmax", "residual": "dyt"}),
    "no-norm": (NoNorm, {"attention": "softmax", "residual": "none"}),
    "sigmoid+dyt": (NoNorm, {}),
    "clipped-softmax": (Clipped, {"attention": "clipped_softmax", "softmax_alpha": 1.5, "residual": "none"}),
    "soft-cap": (Clipped, {"attention": "soft_cap", "soft_cap": 2.0, "residual": "none"}),
    "clip-stream": (Clipped, {"residual": "stream", "residual_threshold": 0.7}),
    "clip-norm-input": (Clipped, {"residual": "norm_input", "norm_medians": 2.0}),
    "learnable-sink": (SinkAbsorbed, {"residual": "rms_norm", "sink_scale": 10.0}),
    "off-by-one": (SinkAbsorbed, {"attention": "off_by_one", "residual": "rms_norm"}),
    "key-value-bias": (SinkAbsorbed, {"attention": "key_value_bias", "residual": "rms_norm"}),
    "key-bias": (SinkAbsorbed, {"attention": "key_value_bias", "learn_value": False, "residual": "rms_norm"}),
    "pre-affine": (SinkAbsorbed, {"attention": "softmax"}),
    "headwise-gate": (Gated, {"attention_gate": "headwise", "norm_gate": "none"}),
    "elementwise-gate": (Gated, {"attention_gate": "elementwise", "norm_gate": "none"}),
    "unconditional-gate": (Gated, {"attention_gate": "unconditional", "norm_gate": "none"}),
    "gated-norm": (Gated, {"attention_gate": "none", "norm_rank": 3}),
    "tensorwise-norm-gate": (Gated, {"attention_gate": "none", "norm_rank": 3, "norm_granularity": "tensorwise"}),
    "tanh-norm-gate": (Gated, {"attention_gate": "none", "norm_rank": 3, "norm_activation": "tanh"}),
    "silu-norm-gate": (Gated, {"attention_gate": "none", "norm_rank": 3, "norm_activation": "silu"}),
    "identity-norm-gate": (Gated, {"attention_gate": "none", "norm_rank": 3, "norm_activation": "identity"}),
    "gate-dyt": (Gated, {"attention_gate": "none", "norm_gate": "gate_dyt", "norm_rank": 3}),
    "gated": (Gated, {"norm_rank": 3}),
    "softpick": (CausalLM, {"normalizer": Softpick}),
    "learned-exclusion": (CausalLM, {"exclusion": partial(LearnedExclusion, initial=0.3)}),
    "tensorwise-gate": (CausalLM, {"attention_gate": TensorwiseGate}),
    "truncated-gate": (CausalLM, {"attention_gate": partial(AmplifyingHeadwiseGate, dimensions=3)}),
    "silu-gate": (CausalLM, {"attention_gate": partial(ActivatedGate, activation="silu")}),
    "gated-keys": (CausalLM, {"key_gate": GatedKeys}),
    "exclusive+gate": (CausalLM, {"exclusion": ExclusiveSelfAttention, "attention_gate": ElementwiseGate}),
}

NORMS: dict[str, type[Norm]] = {
    "derf": Derf,
    "layer-norm": LayerNorm,
    "gain-free-norm": GainFreeRMSNorm,
    "single-scalar-norm": ScalarGainRMSNorm,
    "zero-centered-norm": ZeroCenteredRMSNorm,
    "seednorm": SeeDNorm,
}
# Whose attention is the baseline's.
RESIDUAL_SIDE: dict[str, tuple[type[CausalLM], dict[str, Any]]] = {
    **{name: (CausalLM, {"norm": norm, "head_norm": norm}) for name, norm in NORMS.items()},
    "clip-first-token": (Clipped, {"residual": "first_token", "residual_threshold": 0.7}),
    "clip-other-tokens": (Clipped, {"residual": "other_tokens", "residual_threshold": 0.7}),
    "sandwich": (CausalLM, {"output_norm": RMSNorm}),
    "feed-forward-norm-gate": (CausalLM, {"feed_forward_norm": partial(GatedNorm, rank=3)}),
    "amplifying-norm-gate": (CausalLM, {"norm": partial(AmplifyingGatedNorm, rank=3)}),
    "norm-gate-alone": (CausalLM, {"norm": partial(GatedNorm, rank=3, norm=IdentityNorm)}),
}
VARIANTS |= RESIDUAL_SIDE

ARCHITECTURES: dict[str, dict[str, Any]] = {
    f"{position}{'+qk-norm' if qk_norm else ''}{'+tied' if tied else ''}": {
        "position": position,
        "qk_norm": qk_norm,
        "tied_embeddings": tied,
        "bias": tied,
    }
    for position, qk_norm, tied in itertools.product(("rope", "learned", "none"), (False, True), (False, True))
}
FEED_FORWARDS = {"gelu": GELU, "swiglu": SwiGLU, "sigmoid-glu": SigmoidGLU}


def build(name: str, context_length: int = 12, vocab_size: int = 11, **options: Any) -> CausalLM:
    """A variant at a small size, its decoder built."""
    family, own = VARIANTS[name]
    model = family(vocab_size, context_length, **{"architecture": SMALL, "feed_forward": GELU} | own | options)
    model.configure_model()
    return model


Builder = Callable[..., CausalLM]
