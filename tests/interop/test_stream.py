"""Weights that stay on disk: the same model, with those of one block in memory."""

import gc
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    FlintConfig,
    FlintForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ZayaConfig,
    ZayaForCausalLM,
)

from sinks.cli import main
from sinks.errors import UserError
from sinks.interop.adapter import Adapter
from sinks.interop.load import load_pretrained
from sinks.record import RunFolder
from tests.cli.test_mistakes import one_line
from tests.interop import families, tiny
from tests.interop.test_load import edit, of_another_width, truncated, without_one_parameter


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """A folder of a model, and a tokenizer."""
    model.save_pretrained(folder, **options)
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model in shards that end in the middle of a block."""
    folder = tiny.save(tmp_path_factory.mktemp("models") / "tiny", max_shard_size="20KB", tie_word_embeddings=True)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@torch.no_grad()
def assert_same_model(folder: Path, dtype: torch.dtype) -> None:
    """Logits bit for bit, and what is known of the parameters without their values."""
    plain, streamed = (load_pretrained(str(folder), dtype=dtype, stream=s).model for s in (False, True))
    assert torch.equal(streamed(families.tokens()).logits, plain(families.tokens()).logits)
    known = [[(n, p.shape, p.dtype, p.device) for n, p in m.named_parameters()] for m in (streamed, plain)]
    assert known[0] == known[1]
    assert not any(p.requires_grad for p in streamed.parameters())


QUICK = ("Llama", "Gemma 2", "GPT-2", "gpt-oss", "Qwen3-Next")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in families.SUPPORTED if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_every_family_computes_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = saved(families.build(name), tmp_path / "model")
    for dtype in (torch.float32, torch.bfloat16):
        assert_same_model(folder, dtype)


def test_a_module_keeps_its_own_weights_while_others_run_inside_it(tmp_path: Path) -> None:
    """Zaya's stack scales the embedding by a parameter of its own."""
    sizes = {"head_dim": 8, "moe_intermediate_size": 16, "router_hidden_size": 16, "num_experts": 4}
    torch.manual_seed(0)
    model = ZayaForCausalLM(ZayaConfig(**families.BASE | sizes, initializer_range=0.3))
    assert_same_model(saved(model, tmp_path / "model"), torch.float32)


def test_what_a_model_keeps_in_float32_stays_so(tmp_path: Path) -> None:
    """Flint's sinks, in a model of bfloat16."""
    sizes = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    model = FlintForCausalLM(FlintConfig(**families.BASE | sizes, initializer_range=0.3))
    folder = saved(model, tmp_path / "model")
    streamed = load_pretrained(str(folder), dtype=torch.bfloat16, stream=True).model
    assert {p.dtype for n, p in streamed.named_parameters() if "sinks" in n} == {torch.float32}
    assert_same_model(folder, torch.bfloat16)


def assert_same_analysis(found: Path, expected: Path) -> None:
    """Bit for bit."""
    one, other = RunFolder(found), RunFolder(expected)
    assert one.summary() == other.summary()
    assert one.analysis() == other.analysis()
    arrays = other.statistics("analysis").arrays
    assert one.statistics("analysis").arrays.keys() == arrays.keys()
    for name, array in one.statistics("analysis").arrays.items():
        assert np.array_equal(array, arrays[name], equal_nan=True)


def test_the_analysis_is_the_same_one(sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text(tiny.TEXT)
    command = ["analyze", str(sharded), f"--text={tmp_path / 'words.txt'}", "--rows=3", "--tokens=12"]
    assert main([*command, f"--out={tmp_path / 'plain'}"]) == 0
    assert main([*command, f"--out={tmp_path / 'streamed'}", "--stream=true"]) == 0
    assert_same_analysis(tmp_path / "streamed/tiny/words-bos-auto", tmp_path / "plain/tiny/words-bos-auto")
    capsys.readouterr()
    assert main([*command, f"--out={tmp_path / 'plain'}", "--stream=true"]) == 0
    assert "(unchanged)" in capsys.readouterr().out


@torch.no_grad()
def test_the_weights_of_one_module_are_in_memory_at_a_time(sharded: Path) -> None:
    model = load_pretrained(str(sharded), stream=True).model
    blocks = Adapter().blocks(model)
    held: list[int] = []

    def count(module: nn.Module, *_: object) -> None:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
        held.append(sum(size for size in storages.values()))
        if module in blocks:
            assert all(p.isfinite().all() for p in module.parameters())
            assert all(p.isnan().all() for b in blocks if b is not module for p in b.parameters())

    for module in model.modules():
        module.register_forward_hook(count)
    model(families.tokens())
    largest = max(4 * sum(p.numel() for p in part.parameters()) for part in (*blocks, model.get_input_embeddings()))
    assert largest <= max(held) < largest + 4 * len(list(model.parameters())) * 2


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncated, "the weights of .* cannot be read"),
        (without_one_parameter, r"no weights for 1 parameters of its configuration \(model\.layers\.2\.mlp\.up_proj"),
        (
            of_another_width,
            r"mlp\.\w+\.weight of the model cannot be read \(.* in its file, .* by config\.json",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(
    damage: Callable[[Path], None], expected: str, tmp_path: Path, temporary: Path
) -> None:
    damage(tiny.save(tmp_path / "tiny"))
    with pytest.raises(UserError, match=expected) as error:
        load_pretrained(str(tmp_path / "tiny"), stream=True)
    assert "\n" not in str(error.value)
    del error
    gc.collect()
    assert not list(temporary.iterdir())


def test_a_missing_shard_is_one_line(sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "tiny"))
    model = load_pretrained(str(folder), stream=True).model
    expected = model(families.tokens()).logits
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"model\.layers\.\S+ of the model cannot be read"):
        model(families.tokens())
    (tmp_path / "moved").rename(shard)
    assert torch.equal(model(families.tokens()).logits, expected)
    left = [name for name, parameter in model.named_parameters() if parameter.isfinite().any()]
    assert left == ["model.embed_tokens.weight"], "of the head, which ran last"
    shard.unlink()
    assert f"lacks {shard.name} of the" in one_line(["analyze", str(folder), "--stream=true"], capsys)


def test_weights_used_outside_of_their_module_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tiny.save(tmp_path / "tiny")
    (folder / "borrowing.py").write_text(
        "from torch.nn.functional import linear\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from transformers.modeling_outputs import CausalLMOutputWithPast\n"
        "class BorrowingConfig(LlamaConfig):\n    model_type = 'borrowing'\n"
        "class Borrowing(LlamaForCausalLM):\n    config_class = BorrowingConfig\n"
        "    def forward(self, input_ids, use_cache=False):\n"
        "        hidden = self.model(input_ids, use_cache=use_cache)[0]\n"
        "        return CausalLMOutputWithPast(logits=linear(hidden, self.model.embed_tokens.weight))\n"
    )
    code = {"AutoConfig": "borrowing.BorrowingConfig", "AutoModelForCausalLM": "borrowing.Borrowing"}
    edit(folder / "config.json", model_type="borrowing", auto_map=code)
    load_pretrained(str(folder), trust_remote_code=True)
    with pytest.raises(UserError, match=r"the logits of .* are not finite: .* do not stream"):
        load_pretrained(str(folder), trust_remote_code=True, stream=True)


def test_what_is_stored_in_another_layout_is_copied_until_the_model_is_gone(tmp_path: Path, temporary: Path) -> None:
    """The experts of a layer are stored one by one, and used as one tensor."""
    pretrained = load_pretrained(str(saved(families.build("Qwen3-Next"), tmp_path / "experts")), stream=True)
    (folder,) = temporary.iterdir()
    assert all("experts" in file.name for file in folder.iterdir())
    del pretrained
    gc.collect()
    assert not list(temporary.iterdir())


def test_tied_weights_are_those_of_either_name_in_the_files(sharded: Path, tmp_path: Path) -> None:
    """Of one name, or of both: two equal copies are one parameter, others are two."""
    weights = {name: tensor for file in sharded.glob("*.safetensors") for name, tensor in load_file(file).items()}
    embedding = weights.pop("model.embed_tokens.weight")
    for name, copies in (
        ("head", {"lm_head.weight": embedding}),
        ("equal", {"lm_head.weight": embedding, "model.embed_tokens.weight": embedding.clone()}),
        ("other", {"lm_head.weight": embedding, "model.embed_tokens.weight": -embedding}),
    ):
        folder = Path(shutil.copytree(sharded, tmp_path / name))
        for file in folder.glob("model*"):
            file.unlink()
        save_file(weights | copies, folder / "model.safetensors", {"format": "pt"})
        assert_same_model(folder, torch.float32)


LIMIT = 600 * 2**20
ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


def analyze_within(limit: int | None, arguments: list[str]) -> tuple[int, int]:
    """Run `sinks analyze` in a process that is killed above a number of bytes of memory that no file backs.

    Imports count. Pages of mapped files do not: the kernel takes them back when memory is short.

    Returns:
        The exit code, and the largest number of bytes that was seen.
    """
    child = subprocess.Popen([sys.executable, "-m", "sinks", "analyze", *arguments], stdout=subprocess.DEVNULL)
    largest = 0
    while child.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError):
            found = ANONYMOUS.search(Path(f"/proc/{child.pid}/status").read_text())
            largest = max(largest, 1024 * int(found[1]) if found else 0)
        if limit is not None and largest > limit:
            child.kill()
        time.sleep(0.002)
    return child.returncode, largest


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc says how much memory a process has")
def test_a_model_of_1_gb_gives_the_same_numbers_within_600_mb(tmp_path: Path) -> None:
    """In float32, which it is converted to from bfloat16; most of the 600 MB are what imports take."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 17, "num_attention_heads": 16}
    config = tiny.config(num_key_value_heads=4, initializer_range=0.05, **sizes)
    folder = saved(LlamaForCausalLM(config).to(torch.bfloat16), tmp_path / "large", max_shard_size="100MB")
    assert 10**9 < 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 1.1 * 10**9
    (tmp_path / "words.txt").write_text(tiny.TEXT)
    command = [str(folder), f"--text={tmp_path / 'words.txt'}", "--rows=2", "--tokens=16", "--device=cpu"]
    assert analyze_within(None, [*command, f"--out={tmp_path / 'plain'}"])[0] == 0
    code, _ = analyze_within(LIMIT, [*command, f"--out={tmp_path / 'killed'}"])
    assert code == -signal.SIGKILL
    code, largest = analyze_within(LIMIT, [*command, f"--out={tmp_path / 'streamed'}", "--stream=true"])
    assert code == 0, f"{largest / 2**20:.0f} MB"
    assert_same_analysis(tmp_path / "streamed/large/words-bos-auto", tmp_path / "plain/large/words-bos-auto")
