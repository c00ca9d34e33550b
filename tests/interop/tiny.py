"""Random models of a few kilobytes with a tokenizer, saved as a user would."""

import functools
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sinks.data.tokenizer import TextTokenizer

TEXT = "".join(f"Row {i} of the text has the number {i * i} in it, and nothing else.\n" for i in range(200))


@functools.cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train([TEXT], 300)


def config(**options: object) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaConfig(**{"vocab_size": 300, "num_key_value_heads": 2, "initializer_range": 0.3} | sizes | options)


def save(folder: Path, max_shard_size: str = "1GB", **options: object) -> Path:
    """A Llama with random weights, and its tokenizer."""
    torch.manual_seed(0)
    LlamaForCausalLM(config(**options)).save_pretrained(folder, max_shard_size=max_shard_size)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer().tokenizer).save_pretrained(folder)
    return folder
