"""Imported checkpoints compute what transformers does; what cannot be imported is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sinks.described import section_of
from sinks.errors import UserError
from sinks.families.stored import instantiate
from sinks.interop.decoder_import import import_model
from sinks.observe import Reader, sites_of
from tests.interop.shapes import SHAPES, SIZES, YARN, assert_same_logits, tiny, tokens, transformers


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str) -> None:
    original = tiny(name)
    assert_same_logits(import_model(original)(tokens()), original(tokens()).logits)


@pytest.mark.parametrize("name", ["llama-tied", "gpt-oss"])
@pytest.mark.parametrize("shard_size", ["20KB", "1GB"])
@torch.no_grad()
def test_a_folder_gives_what_the_model_in_memory_gives(name: str, shard_size: str, tmp_path: Path) -> None:
    original = tiny(name)
    original.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    assert torch.equal(import_model(tmp_path)(tokens()), import_model(original)(tokens()))


@torch.no_grad()
def test_a_window_and_scaling_matter() -> None:
    """So that equal logits above are no accident of sizes that leave an option without effect."""
    plain = import_model(tiny("mistral-no-window"))(tokens())
    assert not torch.allclose(import_model(tiny("mistral"))(tokens()), plain, atol=1e-2)
    llama = import_model(tiny("llama"))(tokens())
    for name in ("llama-linear", "llama-llama3", "llama-yarn"):
        assert not torch.allclose(import_model(tiny(name))(tokens()), llama, atol=1e-2), name


@pytest.mark.parametrize("name", ["llama-tied", "qwen2-windows", "gpt-oss"])
@torch.no_grad()
def test_statistics_are_those_of_eager_attention(name: str) -> None:
    original = tiny(name)
    output = original(tokens(), output_attentions=True, output_hidden_states=True)
    maps = torch.stack(output.attentions).double()  # [layers, B, H, T, T]
    model = import_model(original)
    reader = Reader(sites_of(model))
    with reader.reading():
        model(tokens())
    _, arrays = reader.summarize()
    mass = torch.from_numpy(arrays.arrays["attention/first_token_mass"])[0].double()
    torch.testing.assert_close(mass, maps[..., 1:, 0].mean((1, 3)), atol=2e-6, rtol=1e-5)
    where = [arrays.sites["residual"].index(f"blocks.{layer}.attention.norm.input") for layer in range(3)]
    largest = torch.from_numpy(arrays.arrays["residual/max_abs"])[0, where].double().amax(-1)
    expected = torch.stack([hidden.abs().max() for hidden in output.hidden_states[:3]]).double()
    torch.testing.assert_close(largest, expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama-llama3", "qwen3-windows-biases", "gpt-oss"])
@torch.no_grad()
def test_the_model_can_be_written_as_a_configuration(name: str) -> None:
    """Built from its section, it takes the weights and gives the same logits."""
    model = import_model(tiny(name), context_length=64)
    section = json.loads(json.dumps(section_of(model, "vocab_size", "context_length")))
    text = {
        "class_path": "sinks.data.text.Text",
        "init_args": {"vocab_size": SIZES["vocab_size"], "context_length": 64},
    }
    built, _ = instantiate(section, text)
    built.configure_model()
    built.load_state_dict(model.state_dict())
    assert torch.equal(built.eval()(tokens()), model(tokens()))


@torch.no_grad()
def test_weights_in_another_precision_are_read_as_float32(tmp_path: Path) -> None:
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model = import_model(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(model(tokens()), original(tokens()).logits)


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def assert_one_line(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        import_model(folder)
    assert "\n" not in str(raised.value)


def test_a_missing_shard_is_named(folder: Path) -> None:
    name = first_shard(folder).name
    first_shard(folder).unlink()
    assert_one_line(folder, f"lacks {name}")


def test_a_truncated_shard_is_named(folder: Path) -> None:
    first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:100])
    assert_one_line(folder, f"{first_shard(folder).name} is damaged")


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    assert_one_line(folder, "tensor model.layers.2.* has no place in the decoder")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_config(folder, num_hidden_layers=4)
    assert_one_line(folder, "tensor model.layers.3.* is missing")


def test_a_tensor_of_another_size_is_named(folder: Path) -> None:
    change_config(folder, intermediate_size=40)
    assert_one_line(folder, r"tensor model.layers.0.mlp.up_proj.weight is \(48, 32\), but .* \(40, 32\)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": YARN | {"rope_type": "dynamic"}}, "rope_type is 'dynamic'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantized .*mxfp4"),
        ({"model_type": "gemma2"}, "type 'gemma2' has no counterpart"),
        ({"model_type": "nonsense"}, "type .nonsense. has no counterpart"),
    ],
)
def test_what_the_decoder_lacks_is_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    change_config(folder, **changes)
    assert_one_line(folder, words)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert_one_line(folder, "only pytorch_model.bin, a pickle")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert_one_line(tmp_path, "has no config.json")


def test_another_module_is_named() -> None:
    with pytest.raises(UserError, match="Linear has no transformers configuration"):
        import_model(torch.nn.Linear(2, 2))
