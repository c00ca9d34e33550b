"""Tiny transformers models with random weights, large enough that every part of them counts."""

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

LENGTH, WINDOW = 12, 4
SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
ORIGINAL = {"rope_theta": 10000.0, "original_max_position_embeddings": 8, "factor": 4.0}
LLAMA3 = ORIGINAL | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = ORIGINAL | {"rope_type": "yarn"}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}
# Name -> class of the configuration, and its options.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-one-kv-head": ("LlamaConfig", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-biases": ("LlamaConfig", {"attention_bias": True}),
    "llama-mlp-biases": ("LlamaConfig", {"mlp_bias": True}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    "llama-llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama-yarn-attention": ("LlamaConfig", {"rope_parameters": YARN | {"attention_factor": 1.5, "truncate": False}}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "mistral-no-window": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-windows": ("Qwen2Config", SLIDING | {"rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "rms_norm_eps": 1e-2}),
    "qwen3-windows-biases": ("Qwen3Config", SLIDING | {"head_dim": 16, "attention_bias": True}),
    "gpt-oss": ("GptOssConfig", EXPERTS | {"head_dim": 8}),
    "gpt-oss-no-biases": ("GptOssConfig", EXPERTS | {"head_dim": 8, "attention_bias": False, "swiglu_limit": 0.5}),
}


def tiny(name: str, **changes: Any) -> Any:
    """A model of a shape with eager attention; norms around one, all else and the sinks around zero, far from it."""
    kind, options = SHAPES[name]
    config = getattr(transformers, kind)(**SIZES | options | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in path else 0.0, 0.3, generator=generator)
    return model.eval()


def tokens() -> torch.Tensor:
    """Rows of token ids [2, LENGTH]."""
    return torch.randint(0, SIZES["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(2))


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest logit."""
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= 1e-5, error
