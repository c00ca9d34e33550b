"""A training step of our models and of baseline models of the same shape."""

import importlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinks.interop.find import find_sites
from sinks.models.decoder import Architecture
from sinks.observe import Reader
from sinks.observe.groups import GROUPS

Step = Callable[[Tensor], None]
# The same in every baseline: litgpt's default is another.
_EPS = 1e-6


@dataclass(frozen=True)
class BaselineModel:
    """A model of another library.

    Args:
        model: on the CPU, float32.
        logits: token ids [B, T] -> logits [B, T, V].
        layers: compiled individually, if compiling the whole model is worse.
    """

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    layers: Iterable[nn.Module] = ()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean next-token cross-entropy of rows [B, T + 1], by torch."""
        return F.cross_entropy(self.logits(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())

    def compile(self, **options: Any) -> str:
        """Compile it with torch.compile's options; return what was compiled."""
        for part in self.layers or [self.model]:
            part.compile(**options)
        return "layers compiled" if self.layers else "compiled"


def llama(shape: Architecture, vocab_size: int, context_length: int) -> BaselineModel:
    """Hugging Face's Llama with torch's own fused attention.

    Raises:
        ImportError: if transformers is not installed.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.ffn_hidden,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads or shape.n_heads,
            head_dim=shape.head_dim or shape.d_model // shape.n_heads,
            max_position_embeddings=context_length,
            rms_norm_eps=_EPS,
            tie_word_embeddings=shape.tied_embeddings,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    # When traced before torch 2.14, transformers always builds the T x T mask, so SDPA cannot use its fused causal
    # kernels; outside the trace it passes None to the layers.
    return BaselineModel(model, lambda tokens: model(tokens).logits, model.model.layers)


def litgpt(shape: Architecture, vocab_size: int, context_length: int) -> BaselineModel:
    """litgpt's GPT as it builds Llamas.

    Raises:
        ImportError: if litgpt is not installed.
    """
    package: Any = importlib.import_module("litgpt")
    model = package.GPT(
        package.Config(
            block_size=context_length,
            padded_vocab_size=vocab_size,
            n_layer=shape.n_layers,
            n_embd=shape.d_model,
            n_head=shape.n_heads,
            n_query_groups=shape.n_kv_heads or shape.n_heads,
            head_size=shape.head_dim or shape.d_model // shape.n_heads,
            intermediate_size=shape.ffn_hidden,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=_EPS,
            mlp_class_name="LLaMAMLP",
        )
    )
    if shape.tied_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    return BaselineModel(model, model)


def torchtitan(shape: Architecture, vocab_size: int, context_length: int) -> BaselineModel:
    """torchtitan's Llama 3 with fused projections of queries, keys and values, and torch's own fused attention.

    Its language models train with FlexAttention, because documents of a row do not see each other. Here a row is one
    document, for which torchtitan's SDPA module computes the same faster.

    Raises:
        ImportError: if torchtitan is not installed.
    """
    common: Any = importlib.import_module("torchtitan.models.common")
    config: Any = importlib.import_module("torchtitan.models.common.config_utils")
    sdpa: Any = importlib.import_module("torchtitan.models.common.attention").ScaledDotProductAttention
    llama3: Any = importlib.import_module("torchtitan.models.llama3.model")
    width, head_dim = shape.d_model, shape.head_dim or shape.d_model // shape.n_heads
    linear = {"weight": partial(nn.init.normal_, std=shape.init_std)}

    def norm() -> Any:
        return common.RMSNorm.Config(normalized_shape=width, eps=_EPS, param_init={"weight": nn.init.ones_})

    def block() -> Any:
        return llama3.Llama3TransformerBlock.Config(
            attention_norm=norm(),
            ffn_norm=norm(),
            attention=config.make_gqa_config(
                dim=width,
                n_heads=shape.n_heads,
                n_kv_heads=shape.n_kv_heads,
                head_dim=head_dim,
                wqkv_param_init=linear,
                wo_param_init=linear,
                inner_attention=sdpa.Config(),
                fuse_qkv=True,
                rope=common.ComplexRoPE.Config(dim=head_dim, max_seq_len=context_length),
            ),
            feed_forward=config.make_ffn_config(
                dim=width, hidden_dim=shape.ffn_hidden, w1_param_init=linear, w2w3_param_init=linear
            ),
        )

    model = llama3.Llama3Model.Config(
        dim=width,
        vocab_size=vocab_size,
        enable_weight_tying=shape.tied_embeddings,
        tok_embeddings=common.Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=width,
            param_init={"weight": partial(nn.init.normal_, std=shape.embedding_std)},
        ),
        norm=norm(),
        lm_head=common.Linear.Config(in_features=width, out_features=vocab_size, param_init=linear),
        layers=[block() for _ in range(shape.n_layers)],
    ).build()
    model.init_states()
    return BaselineModel(model, model, model.layers.values())


BASELINE_MODELS = {"Hugging Face Llama, SDPA": llama, "litgpt GPT": litgpt, "torchtitan Llama 3, SDPA": torchtitan}


def stepper(
    model: nn.Module, loss: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Step:
    """One optimizer step on rows [B, T + 1], clipping included.

    Args:
        model: with the parameters.
        loss: rows -> mean next-token cross-entropy.
        device: of the model.
        dtype: of autocast; float32 for none.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(rows: Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            value = loss(rows)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampled(step: Step, model: nn.Module, groups: Collection[str] = tuple(GROUPS)) -> Step:
    """A step with statistics: recorded in the forward, totals moved to the host.

    Args:
        step: of the same model.
        model: whose sites are read.
        groups: of statistics that are read.
    """
    reader = Reader(find_sites(model), groups)

    def run(rows: Tensor) -> None:
        reader.start()
        hook = model.register_forward_hook(lambda *_: reader.stop())
        step(rows)
        hook.remove()
        reader.choose_dimensions(reader.totals())
        reader.forget()

    return run
