"""Exports with code of their own: transformers computes, generates, trains and saves with it what the suite does."""

import ast
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sinks.cli import main
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.interop import modeling_sinks
from sinks.interop.decoder_export import export
from sinks.interop.decoder_import import import_model
from sinks.interop.decoder_names import parameters_by_transformers_name
from sinks.interop.load import load_pretrained
from sinks.interop.sites import huggingface_sites
from sinks.interop.verify import verify
from sinks.models.attention_gates import HeadwiseGate, IdentityElementwiseGate, IdentityHeadwiseGate
from sinks.models.decoder import Architecture, LayerOptions
from sinks.models.feed_forward import GELU, SigmoidGLU
from sinks.models.gated_norm import GatedNorm, IdentityGatedNorm
from sinks.models.normalizers import LearnableSink
from sinks.models.norms import PreAffine, RMSNorm
from sinks.models.rope import Linear
from sinks.observe import Reader, sites_of
from sinks.record import RunFolder
from tests.cli.small import fit
from tests.families.variants import VARIANTS
from tests.families.variants import build as build_variant
from tests.interop import tiny
from tests.interop.shapes import assert_same_logits, transformers

LENGTH = 12
SHIPPED = ("soft-cap", "learnable-sink", "off-by-one", "pre-affine", "headwise-gate", "elementwise-gate",
           "unconditional-gate", "gated-norm", "tensorwise-norm-gate", "tanh-norm-gate", "silu-norm-gate",
           "identity-norm-gate", "amplifying-norm-gate", "gated", "truncated-gate")  # fmt: skip
WIDE = partial(Architecture, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, ffn_hidden=24, init_std=0.3)
WINDOWS = (LayerOptions(3), LayerOptions(), LayerOptions(rope=False))
OWN: dict[str, dict[str, Any]] = {
    "retrofitted": {
        "architecture": WIDE(tied_embeddings=True, layer_pattern=WINDOWS, rope_frequencies=partial(Linear, factor=2.0)),
        "attention_gate": IdentityElementwiseGate,
        "norm": partial(IdentityGatedNorm, rank=3, norm=partial(PreAffine, eps=0.1)),
        "head_norm": partial(GatedNorm, rank=2, granularity="tensorwise", initial_gate=0.7),
    },
    "retrofitted-heads": {
        "architecture": WIDE(position="learned", qk_norm=True, qk_norm_eps=0.1, bias=True),
        "attention_gate": IdentityHeadwiseGate,
        "norm": partial(RMSNorm, eps=0.1),
        "feed_forward": SigmoidGLU,
    },
    "open-gates": {"architecture": WIDE(), "attention_gate": partial(HeadwiseGate, initial_gate=0.9)},
    "sink-in-windows": {
        "architecture": WIDE(position="none", bias="qkv", attention_scale=0.7, layer_pattern=(LayerOptions(3),)),
        "normalizer": partial(LearnableSink, initial=-1.0),
        "feed_forward": GELU,
    },
}
SOME = ("gated", "learnable-sink", "off-by-one", "soft-cap", *OWN)


def build(name: str, vocabulary: int = 96) -> CausalLM:
    """A variant of which every parameter counts: gains around one, all else around zero, far from it."""
    if name in VARIANTS:
        model = build_variant(name, LENGTH, vocabulary)
    else:
        model = CausalLM(vocabulary, LENGTH, **OWN[name])
        model.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            center = 1.0 if path.endswith(("norm.weight", ".pre")) else 0.0
            parameter.normal_(center, 0.3, generator=generator)
    return model.eval()


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of models is copied to a folder of the test's own."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def opened(folder: Path, **options: Any) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def rows(seed: int = 2) -> Tensor:
    return torch.randint(0, 96, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [*SHIPPED, *OWN])
@torch.no_grad()
def test_logits_are_the_suites_and_causal(name: str, tmp_path: Path) -> None:
    model, tokens = build(name), rows()
    export(model, tmp_path / "out")
    found, expected = opened(tmp_path / "out"), model(tokens)  # of sdpa, or eager where that would drop a sink
    assert type(found).__module__.startswith("transformers_modules")
    assert_same_logits(found(tokens).logits, expected)
    found.set_attn_implementation("eager")
    result = found(tokens, output_attentions=True, output_hidden_states=True)
    assert_same_logits(result.logits, expected)
    torch.testing.assert_close(torch.stack(result.attentions), model.decoder.attention_maps(tokens))
    assert len(result.hidden_states) == model.architecture.n_layers + 1
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 96
    assert torch.equal(found(changed).logits[:, :-1], found(tokens).logits[:, :-1])


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_the_cache_changes_no_token(name: str, tmp_path: Path) -> None:
    export(build(name), tmp_path / "out")
    found, prompt = opened(tmp_path / "out"), rows()[:, :5]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    options |= {"output_logits": True, "attention_mask": torch.ones_like(prompt)}
    cached, whole = (found.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert cached.past_key_values.get_seq_length() == 10
    assert torch.equal(cached.sequences, whole.sequences)
    assert_same_logits(torch.stack(cached.logits), torch.stack(whole.logits))


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_a_cache_goes_on_where_it_ends(name: str, tmp_path: Path) -> None:
    """Several tokens at a time, without positions; and there is one only where it is asked for."""
    export(build(name), tmp_path / "out")
    found, tokens = opened(tmp_path / "out"), rows()
    start = found(tokens[:, :5])
    rest = found(tokens[:, 5:], past_key_values=start.past_key_values)
    assert_same_logits(torch.cat([start.logits, rest.logits], dim=1), found(tokens).logits)
    assert found(tokens, use_cache=False).past_key_values is None
    found.config.use_cache = False
    assert found(tokens).past_key_values is None
    assert found(tokens, use_cache=True).past_key_values is not None


@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_embeddings_in_and_some_logits_out(name: str, tmp_path: Path) -> None:
    export(build(name), tmp_path / "out")
    found, tokens = opened(tmp_path / "out"), rows()
    expected = found(tokens).logits
    embedded = found.get_input_embeddings()(tokens)
    assert torch.equal(found(inputs_embeds=embedded).logits, expected)
    for given in ({"input_ids": tokens, "inputs_embeds": embedded}, {}):
        with pytest.raises(ValueError, match="give one of input_ids and inputs_embeds"):
            found(**given)
    kept = found(tokens, logits_to_keep=2).logits
    assert kept.shape[1] == 2
    assert_same_logits(kept, expected[:, -2:])
    assert_same_logits(found(tokens, logits_to_keep=torch.tensor([3, 5])).logits, expected[:, [3, 5]])
    result = found(tokens, output_hidden_states=True)
    assert torch.equal(result.hidden_states[-1], found.model(tokens).last_hidden_state)
    assert result.attentions is None
    assert found(tokens).hidden_states is None


@torch.no_grad()
def test_masks_by_kind_of_layer_are_taken_as_they_are(tmp_path: Path) -> None:
    """Where no layer has positions and every token sees itself alone, a row is as many rows of one token."""
    export(build("sink-in-windows"), tmp_path / "out")
    found, tokens = opened(tmp_path / "out"), rows()
    alone = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~torch.eye(LENGTH).bool(), torch.finfo(torch.float32).min)
    logits = found(tokens, attention_mask={"sliding_attention": alone}).logits
    assert_same_logits(logits, found(tokens.view(-1, 1)).logits.view(logits.shape))


@torch.no_grad()
def test_positions_that_start_again_begin_a_text(tmp_path: Path) -> None:
    export(build("retrofitted"), tmp_path / "out")
    found, tokens = opened(tmp_path / "out"), rows()
    packed = found(tokens.view(1, -1), position_ids=torch.arange(LENGTH).repeat(2)[None], use_cache=False).logits
    assert_same_logits(packed.view(2, LENGTH, -1), found(tokens).logits)


@pytest.mark.parametrize("name", ["retrofitted", "learnable-sink", "off-by-one", "soft-cap"])
def test_attention_that_would_drop_a_sink_or_a_limit_is_not_supported(name: str, tmp_path: Path) -> None:
    export(build(name), tmp_path / "out")
    found = opened(tmp_path / "out")
    plain, sinks = name == "retrofitted", name in ("learnable-sink", "off-by-one")
    # What transformers asks before it sets an implementation; installed or not.
    supported = [getattr(found, f"_supports_{kind}") for kind in ("sdpa", "flash_attn", "flex_attn")]
    assert supported == [plain, not sinks, True]
    assert found.is_backend_compatible(), "its attention calls the interface"
    assert found.config._attn_implementation == ("sdpa" if plain else "eager")
    blocks = {type(layer).__name__ for layer in found.model.layers}
    assert set(found._no_split_modules) == blocks, "a device map would cut through a block"


@pytest.mark.parametrize("name", ["retrofitted", "sink-in-windows"])
@torch.no_grad()
def test_padding_on_the_left_changes_no_logit(name: str, tmp_path: Path) -> None:
    export(build(name), tmp_path / "out")
    found, tokens = opened(tmp_path / "out"), rows()[:1, :6]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), tokens], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    shifted = found(padded, attention_mask=mask, position_ids=positions).logits[:, 2:]
    assert_same_logits(shifted, found(tokens).logits)


@pytest.mark.parametrize("name", ["retrofitted", "sink-in-windows"])
def test_training_has_the_suites_loss_and_gradients(name: str, tmp_path: Path) -> None:
    model, tokens = build(name), rows()
    export(model, tmp_path / "out")
    found = opened(tmp_path / "out").train()
    model.loss(tokens).backward()
    runs: list[int] = []
    found.model.layers[0].input_layernorm.register_forward_hook(lambda module, args, output: runs.append(1))
    expected = {path: p.grad for path, p in parameters_by_transformers_name(model.decoder).items()}
    for checkpointing in (False, True):
        found.zero_grad()
        if checkpointing:
            found.activation_checkpointing_enable()
        loss = found(tokens, labels=tokens, use_cache=False).loss
        assert abs(loss.item() - model.loss(tokens).item()) < 1e-5
        runs.clear()
        loss.backward()
        assert len(runs) == checkpointing  # a checkpointed block is computed again
        for path, gradient in expected.items():
            torch.testing.assert_close(found.get_parameter(path).grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["retrofitted", "sink-in-windows"])
@torch.no_grad()
def test_what_transformers_saves_opens_again_with_its_code(name: str, tmp_path: Path) -> None:
    export(build(name), tmp_path / "out")
    found = opened(tmp_path / "out")
    found.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_sinks.py").read_text() == (
        tmp_path / "out" / "modeling_sinks.py"
    ).read_text()
    assert torch.equal(opened(tmp_path / "again")(rows()).logits, found(rows()).logits)


@pytest.mark.parametrize("name", ["retrofitted", "retrofitted-heads", "sink-in-windows", "off-by-one", "gated"])
def test_statistics_are_the_suites(name: str, tmp_path: Path) -> None:
    model, tokens = build(name), rows()
    export(model, tmp_path / "out")
    found = opened(tmp_path / "out")
    verify(found, tokens)
    readers = Reader(sites_of(model)), Reader(huggingface_sites(found))
    results = []
    for reader, run in zip(readers, (model, partial(found, use_cache=False)), strict=True):
        for seed in (0, 2):  # the first chooses the sink dimensions
            for batch in (rows(seed), rows(seed + 1)):
                with reader.reading(), torch.no_grad():
                    run(batch)
            scalars, statistics = reader.summarize()
        results.append((scalars, statistics))
    (ours, arrays), (theirs, their_arrays) = results
    assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5, nan_ok=True)
    assert their_arrays.sites == arrays.sites
    assert their_arrays.arrays.keys() == arrays.arrays.keys()
    for key, array in arrays.arrays.items():
        np.testing.assert_allclose(their_arrays.arrays[key], array, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["retrofitted", "sink-in-windows"])
def test_statistics_of_packed_rows_are_those_of_separate_ones(name: str, tmp_path: Path) -> None:
    """Gates included, those after a norm and those after attention."""
    export(build(name), tmp_path / "out")
    found, tokens = opened(tmp_path / "out"), rows()
    positions = torch.cat([torch.arange(5), torch.arange(7)]).repeat(2, 1)
    packed = [{"input_ids": tokens, "position_ids": positions}]
    separate = [{"input_ids": row[None, part]} for row in tokens for part in (slice(5), slice(5, None))]
    results = []
    for calls in (packed, separate):
        reader = Reader(huggingface_sites(found))
        reader.dimensions = {site: torch.tensor([3]) for site in reader.names["norm"]}
        with reader.reading(), torch.no_grad():
            for arguments in calls:
                found(**arguments, use_cache=False)
        results.append(reader.summarize())
    (scalars, arrays), (expected, expected_arrays) = results
    assert scalars == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)
    gates = {"norm/gate_mean", "attention/gate_mean"}
    assert (gates <= scalars.keys()) == (name == "retrofitted")
    for key, array in expected_arrays.arrays.items():
        np.testing.assert_allclose(arrays.arrays[key], array, rtol=1e-4, atol=1e-5, err_msg=key)


def test_the_code_runs_only_with_consent_and_does_not_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    model = CausalLM(300, LENGTH, **OWN["retrofitted"])
    model.configure_model()
    tiny.tokenizer().tokenizer.save(str(tmp_path / "tokenizer.json"))
    export(model, folder, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="brings code of its own: read it, then add --trust_remote_code true") as raised:
        load_pretrained(str(folder))
    assert "\n" not in str(raised.value)
    assert type(load_pretrained(str(folder), trust_remote_code=True).model).__name__ == "SinksForCausalLM"
    with pytest.raises(UserError, match="type 'sinks_decoder' has no counterpart in the suite's decoder"):
        import_model(folder)


def test_the_command_says_that_code_must_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "run", "--trainer.max_steps=1", variant="gated-both")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        f"{tmp_path / 'out'}  SinksForCausalLM",
        "transformers has no such model, modeling_sinks.py computes it: load it with trust_remote_code=True",
    ]
    assert main(["analyze", str(tmp_path / "out"), "--out", str(tmp_path / "analysis")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--trust_remote_code true" in line
    assert not (tmp_path / "analysis").exists()
    assert opened(tmp_path / "out")(torch.arange(12)[None]).logits.isfinite().all()


def save_to_analyze(name: str, folder: Path) -> CausalLM:
    """Export a variant with a tokenizer; returns it."""
    model = build(name, 300)
    tiny.tokenizer().tokenizer.save(str(folder.with_suffix(".json")))
    export(model, folder, folder.with_suffix(".json"))
    return model


@pytest.mark.parametrize("name", ["retrofitted", "sink-in-windows"])
def test_the_analysis_of_the_folder_has_the_suites_numbers(name: str, tmp_path: Path) -> None:
    """Gates and learned sinks included."""
    model = save_to_analyze(name, tmp_path / "out")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    arguments = ["analyze", str(tmp_path / "out"), "--trust_remote_code=true", f"--text={tmp_path / 'text.txt'}"]
    options = ["--rows=3", f"--tokens={LENGTH}", "--bos=none", "--batch_size=2", "--device=cpu", "--progress=false"]
    assert main([*arguments, *options, f"--out={tmp_path / 'analysis'}"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "analysis").rglob("summary.json"))
    found = RunFolder(folder).summary()
    reader = Reader(sites_of(model))
    tokens = torch.tensor(tiny.tokenizer().encode(tiny.TEXT)[: 3 * LENGTH]).view(3, LENGTH)
    with reader.reading(), torch.no_grad():
        model(tokens)
    expected = reader.summarize()[0]  # without those of sink dimensions, which it had not chosen yet
    assert {key: found.get(key) for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    parts = {"attention/gate_mean", "norm/gate_mean"} if name == "retrofitted" else {"attention/learned_sink_mass"}
    assert parts <= found.keys() | RunFolder(folder).statistics("analysis").arrays.keys()


@pytest.mark.parametrize("name", ["retrofitted", "sink-in-windows"])
def test_the_folder_passes_sinks_check(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_to_analyze(name, tmp_path / "out")
    arguments = ["check", str(tmp_path / "out"), "--device=cpu"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--trust_remote_code true" in line
    assert main([*arguments, "--trust_remote_code=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for what in (
        "eager: packed rows, by positions",
        "eager: packed rows, by a mask",
        "sinks: logits",
        "sinks: gradients",
    ):
        assert f"passed     {what}" in lines
    for what in ("sdpa: logits", "sdpa: gradients", "flex_attention: logits"):
        assert (f"passed     {what}" in lines) == (name == "retrofitted")
    sinks = "passed     sinks: sink gradients" in lines, "passed     sinks in the checkpoint" in lines
    assert sinks == (name == "sink-in-windows",) * 2


def test_the_file_needs_torch_and_transformers_alone() -> None:
    tree = ast.parse(Path(modeling_sinks.__file__).read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in found} == {"torch", "transformers", "typing"}


@torch.no_grad()
def test_further_arguments_reach_the_attention_of_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(build("sink-in-windows"), tmp_path / "out")
    found = opened(tmp_path / "out")
    seen: list[Any] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("cu_seq_lens_q"))
        return modeling_sinks.eager_attention(*args, **kwargs)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "recording", attend)  # for this test alone
    found.set_attn_implementation("recording")
    lengths = torch.tensor([0, LENGTH])
    found(rows(), cu_seq_lens_q=lengths)
    assert len(seen) == 3
    assert all(each is lengths for each in seen)
