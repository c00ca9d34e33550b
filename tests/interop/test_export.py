"""Exported decoders open in transformers, compute the same, and come back bit for bit."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sinks.errors import UserError
from sinks.families import Baseline, CausalLM, Clipped, Gated, NoNorm, SinkAbsorbed
from sinks.interop.decoder_export import export
from sinks.interop.decoder_import import import_model
from sinks.models.attention_gates import ActivatedGate, TensorwiseGate
from sinks.models.decoder import Architecture, LayerOptions
from sinks.models.exclusion import ExclusiveSelfAttention, LearnedExclusion
from sinks.models.experts import Experts
from sinks.models.key_gates import GatedKeys
from sinks.models.normalizers import LearnableSink, Softpick
from sinks.models.norms import PreAffine
from tests.families.variants import SMALL
from tests.interop.shapes import assert_same_logits, tiny, tokens, transformers


def opened(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


ROUND = ("llama-tied", "llama-one-kv-head", "llama-mlp-biases", "llama-linear", "llama-llama3", "llama-yarn-attention",
         "mistral", "qwen2-windows", "qwen3-windows-biases", "gpt-oss")  # fmt: skip


@pytest.mark.parametrize("name", ROUND)
@torch.no_grad()
def test_a_round_trip_is_bitwise(name: str, tmp_path: Path) -> None:
    original = tiny(name)
    model = import_model(original)
    export(model, tmp_path / "out")
    again = import_model(tmp_path / "out")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    assert torch.equal(again(tokens()), model(tokens()))
    back = opened(tmp_path / "out")
    assert torch.equal(back(tokens()).logits, original(tokens()).logits)


PARTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "Qwen3ForCausalLM": {"qk_norm": True, "layer_pattern": (LayerOptions(3), LayerOptions())},
    "MistralForCausalLM": {"layer_pattern": (LayerOptions(3),), "tied_embeddings": True},
    "Qwen2ForCausalLM": {"bias": "qkv"},
}


def wide(**changes: Any) -> Architecture:
    return Architecture(**{"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden": 24, "init_std": 0.3} | changes)


@pytest.mark.parametrize("kind", PARTS)
@torch.no_grad()
def test_a_variant_of_the_suite_opens_in_transformers(kind: str, tmp_path: Path) -> None:
    model = Baseline(96, 16, architecture=wide(**PARTS[kind]))
    model.configure_model()
    export(model, tmp_path / "out")
    back = opened(tmp_path / "out")
    assert type(back).__name__ == kind
    assert_same_logits(back(tokens()).logits, model(tokens()))


@torch.no_grad()
def test_learned_sinks_and_experts_are_gpt_oss(tmp_path: Path) -> None:
    experts = partial(Experts, experts=4, chosen=2)
    model = CausalLM(96, 16, architecture=wide(bias="attention"), normalizer=LearnableSink, feed_forward=experts)
    model.configure_model()
    assert model.decoder is not None
    for block in model.decoder.blocks:
        block.attention.normalizer.sink.normal_()  # type: ignore[union-attr, operator]
    export(model, tmp_path / "out")
    back = opened(tmp_path / "out")
    assert type(back).__name__ == "GptOssForCausalLM"
    assert_same_logits(back(tokens()).logits, model(tokens()))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (partial(NoNorm, architecture=SMALL, attention="softmax"), "norm DyT"),
        (partial(NoNorm, architecture=SMALL, residual="rms_norm"), "normalizer Sigmoid"),
        (partial(Gated, architecture=SMALL, norm_gate="gate_dyt"), "norm GateDyT"),
        (partial(Clipped, architecture=SMALL, residual="norm_input"), "norm ClippedNorm"),
        (partial(Clipped, architecture=SMALL, residual_threshold=1.0), "residual_clip Clamp"),
        (partial(SinkAbsorbed, architecture=SMALL, attention="key_value_bias"), "normalizer KeyValueBias"),
        (partial(CausalLM, architecture=SMALL, norm=PreAffine, feed_forward=Experts), "feed_forward Experts"),
        (partial(CausalLM, architecture=SMALL, exclusion=ExclusiveSelfAttention), "exclusion ExclusiveSelfAttention"),
        (partial(CausalLM, architecture=SMALL, exclusion=LearnedExclusion), "exclusion LearnedExclusion"),
        (partial(CausalLM, architecture=SMALL, normalizer=Softpick), "normalizer Softpick"),
        (partial(CausalLM, architecture=SMALL, key_gate=GatedKeys), "key_gate GatedKeys"),
        (partial(CausalLM, architecture=SMALL, attention_gate=TensorwiseGate), "attention_gate TensorwiseGate"),
        (
            partial(CausalLM, architecture=SMALL, attention_gate=partial(ActivatedGate, activation="tanh")),
            "attention_gate ActivatedGate",
        ),
        (partial(Baseline, architecture=wide(rope_fraction=0.5)), "rope_fraction"),
        (partial(Baseline, architecture=wide(layer_pattern=(LayerOptions(2), LayerOptions(3)))), "several widths"),
    ],
)
def test_a_variant_without_a_counterpart_is_one_line_and_writes_nothing(model: Any, words: str, tmp_path: Path) -> None:
    built = model(96, 16)
    built.configure_model()
    with pytest.raises(UserError, match=words) as raised:
        export(built, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_is_copied(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    export(import_model(tiny("llama")), tmp_path / "out", tmp_path / "tokenizer.json")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("b a c")["input_ids"] == [1, 0, 2]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists: choose another folder"):
        export(import_model(tiny("llama")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no tokenizer"):
        export(import_model(tiny("llama")), tmp_path / "out", tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sinks.interop.decoder_export.save_file", full)
    with pytest.raises(OSError, match="No space"):
        export(import_model(tiny("llama")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_configuration_is_plain_json(tmp_path: Path) -> None:
    found = export(import_model(tiny("gpt-oss")), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == found
