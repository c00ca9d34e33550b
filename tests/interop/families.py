"""Tiny random models of transformers' families: 4 layers, D 32."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
       "eos_token_id": 2}  # fmt: skip
WINDOW = {"sliding_window": 4}
HYBRID = {
    "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "SmolLM3": ("SmolLM3Config", {}),
    "Qwen2": ("Qwen2Config", WINDOW | {"use_sliding_window": True, "max_window_layers": 2}),
    "Mistral": ("MistralConfig", WINDOW),
    "Qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gpt-oss": ("GptOssConfig", WINDOW | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "head_dim": 8, "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }),
    "DeepSeek-V3": ("DeepseekV3Config", {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
    }),
    "Qwen3-Next": ("Qwen3NextConfig", HYBRID | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "Qwen3.5": ("Qwen3_5TextConfig", HYBRID),
    "Gemma 2": ("Gemma2Config", WINDOW | GEMMA),
    "Gemma 3": ("Gemma3TextConfig", WINDOW | GEMMA),
    "OLMo 2": ("Olmo2Config", {}),
    "OLMo 3": ("Olmo3Config", WINDOW),
    "Granite": ("GraniteConfig", {"residual_multiplier": 0.22, "attention_multiplier": 0.3, "embedding_multiplier": 3}),
    "GLM": ("GlmConfig", {"head_dim": 8}),
    "GLM-4": ("Glm4Config", {"head_dim": 8}),
    "Llama 4": ("Llama4TextConfig", {
        "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 16,
    }),
    "GPT-2": ("GPT2Config", GPT),
    "GPT-NeoX": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "Phi": ("PhiConfig", {}),
    "OPT": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None}),
    "Falcon": ("FalconConfig", {"alibi": False}),
    "GPT-J": ("GPTJConfig", GPT | {"rotary_dim": 8}),
    "Bloom": ("BloomConfig", {}),
}  # fmt: skip
UNSUPPORTED = ("Falcon", "GPT-J", "Bloom")
SUPPORTED = tuple(name for name in FAMILIES if name not in UNSUPPORTED)


def build(name: str, implementation: str | None = "eager", **more: Any) -> PreTrainedModel:
    """A random model in evaluation mode, large enough weights for attention that is not uniform."""
    config_name, options = FAMILIES[name]
    base = {} if name in ("GPT-2", "GPT-J") else BASE
    given = {key: value for key, value in (base | options | more).items() if value is not None}
    config = getattr(transformers, config_name)(**given)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
            else:  # gains and biases that are not all alike
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(2))
