"""Statistics of each family equal a plain computation on eager attention and hooked tensors."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sinks.errors import UserError
from sinks.interop.sites import huggingface_sites
from sinks.interop.verify import verify
from sinks.observe import AttentionRecord, NormRecord, Reader, UpdateRecord
from tests.interop.families import SUPPORTED, UNSUPPORTED, build, tokens

# Norms of a block that read its input and the middle of the stream, and the norm after the last block.
USUAL = ("input_layernorm", "post_attention_layernorm", "model.norm")
NORMS: dict[str, tuple[str | None, str | None, str]] = {
    "Gemma 2": ("input_layernorm", "pre_feedforward_layernorm", "model.norm"),
    "Gemma 3": ("input_layernorm", "pre_feedforward_layernorm", "model.norm"),
    "OLMo 2": (None, None, "model.norm"),
    "OLMo 3": (None, None, "model.norm"),
    "GPT-2": ("ln_1", "ln_2", "transformer.ln_f"),
    "GPT-NeoX": ("input_layernorm", "post_attention_layernorm", "gpt_neox.final_layer_norm"),
    "Phi": ("input_layernorm", None, "model.final_layernorm"),
    "OPT": ("self_attn_layer_norm", "final_layer_norm", "model.decoder.final_layer_norm"),
}
ONE_MORE = ("Qwen3-Next", "Qwen3.5", "Gemma 2", "Gemma 3")  # the gain is 1 + w
PARALLEL = ("GPT-NeoX", "Phi")
ATTENDING = {"Qwen3-Next": [3], "Qwen3.5": [3]}


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)


def norms_of(name: str, model: PreTrainedModel) -> dict[str, nn.Module]:
    first, second, last = NORMS.get(name, USUAL)
    found = {}
    for index, block in enumerate(blocks_of(model)):
        for site, at in (("attention.norm", first), ("feed_forward.norm", second)):
            if at is not None:
                found[f"blocks.{index}.{site}"] = block.get_submodule(at)
    return found | {"head.norm": model.get_submodule(last)}


def records_of(model: PreTrainedModel, rows: Tensor) -> dict[str, Any]:
    """Records of one forward pass by site."""
    seen: dict[str, Any] = {}
    sites = huggingface_sites(model)
    for site in sites:
        fields = ("first_token_mass", "learned_sink_mass", "entropy", "max_logit", "key_mass", "value_norm_sums")
        site.listen(lambda record, name=site.name: seen.setdefault(name, record), fields)  # type: ignore[misc]
    with torch.no_grad():
        model(rows, use_cache=False)
    for site in sites:
        site.listen(None)
    return seen


@pytest.mark.parametrize("name", SUPPORTED)
def test_statistics_equal_a_plain_computation(name: str) -> None:
    model, rows = build(name), tokens()
    hooked: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, site=site: hooked.update({site: args[0].view(2, 12, 32)}))
        for site, module in norms_of(name, model).items()
    ]
    with torch.no_grad():
        plain = model(rows, use_cache=False, output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    maps = torch.stack([a for a in plain.attentions if a is not None]).double()  # [layers, B, H, T, T]
    if NORMS.get(name, USUAL)[0] is None:
        hooked |= {f"blocks.{i}.residual.in": plain.hidden_states[i] for i in range(4)}

    reader = Reader(huggingface_sites(model))
    with reader.reading(), torch.no_grad():
        model(rows, use_cache=False)
    names = reader.names
    _, statistics = reader.summarize()
    arrays = {key: torch.from_numpy(array[0]) for key, array in statistics.arrays.items()}

    assert names["attention"] == [f"blocks.{i}.attention" for i in ATTENDING.get(name, range(4))]
    assert set(names["norm"]) == set(hooked)
    torch.testing.assert_close(
        arrays["attention/first_token_mass"].double(), maps[..., 1:, 0].mean((1, 3)), rtol=1e-4, atol=1e-6
    )
    learned = 1 - maps.sum(-1)
    if name == "gpt-oss":
        torch.testing.assert_close(
            arrays["attention/learned_sink_mass"].double(), learned.mean((1, 3)), rtol=1e-4, atol=1e-6
        )
    else:
        assert "attention/learned_sink_mass" not in arrays
    ratio = (maps[..., 0].mean(-1) > 0.3).double().mean(1)
    torch.testing.assert_close(arrays["attention/sink_ratio_0.3"].double(), ratio)
    mean_abs = torch.stack([hooked[site][:, 1:].abs().mean((0, 1)) for site in names["norm"]])
    torch.testing.assert_close(arrays["residual/mean_abs"], mean_abs, rtol=1e-5, atol=1e-6)
    weights = {site: m.weight.detach().abs() for site, m in norms_of(name, model).items()}
    if name in ONE_MORE:
        weights = {site: (1 + m.weight.detach()).abs() for site, m in norms_of(name, model).items()}
    for site, gain in zip(names["norm"], arrays["norm/gain"], strict=True):
        expected = weights.get(site, torch.full((32,), torch.nan))
        torch.testing.assert_close(gain, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SUPPORTED)
def test_records_hold_what_the_model_computes(name: str) -> None:
    """Masses of keys, entropy, the output projection and the gate; the bound's norm is the norm's own output."""
    model, rows = build(name), tokens()
    outputs: dict[int, Tensor] = {}
    records = records_of(model, rows)
    layers = ATTENDING.get(name, list(range(4)))
    modules = [next(m for m in blocks_of(model)[i].modules() if hasattr(m, "is_causal")) for i in layers]
    handles = [
        m.register_forward_hook(lambda m, a, out, i=i: outputs.update({i: out[0]}))
        for i, m in zip(layers, modules, strict=True)
    ]
    with torch.no_grad():
        maps = [a for a in model(rows, use_cache=False, output_attentions=True).attentions if a is not None]
    for handle in handles:
        handle.remove()
    for layer, module, weights in zip(layers, modules, maps, strict=True):
        record = records[f"blocks.{layer}.attention"]
        assert isinstance(record, AttentionRecord)
        torch.testing.assert_close(record.first_token_mass, weights[..., 0], rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(record.key_mass, weights.sum(2), rtol=1e-4, atol=1e-5)
        learned = (1 - weights.sum(-1)).clamp_min(0)
        entropy = -(torch.special.xlogy(weights, weights).sum(-1) + torch.special.xlogy(learned, learned))
        torch.testing.assert_close(record.entropy, entropy, rtol=1e-3, atol=1e-4)
        assert record.v is not None
        assert record.out_weight is not None
        values = record.v.repeat_interleave(weights.shape[1] // record.v.shape[1], 1)
        out = weights @ values
        per_head = record.out_weight.unflatten(1, (weights.shape[1], -1))
        norms = torch.einsum("dhe,bhte->bhtd", per_head, values).norm(dim=-1)
        torch.testing.assert_close(record.value_norms, norms, rtol=1e-3, atol=1e-4)
        sums = (weights @ norms.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(record.value_norm_sums, sums, rtol=1e-3, atol=1e-4)
        assert (record.gate is not None) == (name in ("Qwen3-Next", "Qwen3.5"))
        gated = out if record.gate is None else out * record.gate
        projections = [m for m in module.modules() if isinstance(m, (nn.Linear, Conv1D))]
        bias = next(
            (m.bias for m in projections if m.bias is not None and m.weight.data_ptr() == record.out_weight.data_ptr()),
            torch.zeros(32),
        )
        projected = gated.transpose(1, 2).flatten(2) @ record.out_weight.T + bias
        torch.testing.assert_close(projected, outputs[layer], rtol=1e-4, atol=1e-4)
    for record in (r for r in records.values() if isinstance(r, NormRecord) and r.normalized is not None):
        assert record.weight is not None
        assert record.normalized is not None
        rms = record.input.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(record.weight * record.input / rms, record.normalized, rtol=1e-3, atol=1e-4)
    centered = name in ("GPT-2", "GPT-NeoX", "Phi", "OPT")
    assert all((r.normalized is None) == centered for n, r in records.items() if n.endswith(".norm"))


def hooked_stream(name: str, model: PreTrainedModel, rows: Tensor) -> dict[str, list[Tensor]]:
    """Per block of an eager pass: its input, the middle of the stream, its output, and what the attention returns."""
    seen: dict[str, list[Tensor]] = {"input": [], "middle": [], "output": [], "attention": []}
    handles = []
    for block in blocks_of(model):
        middle = "mlp" if name.startswith("OLMo") else NORMS.get(name, USUAL)[1] or "mlp"
        handles += [
            block.register_forward_pre_hook(lambda m, args: seen["input"].append(args[0])),
            block.get_submodule(middle).register_forward_pre_hook(
                lambda m, args: seen["middle"].append(args[0].view(2, 12, 32))
            ),
            block.register_forward_hook(
                lambda m, args, out: seen["output"].append(out if torch.is_tensor(out) else out[0])
            ),
        ]
        for module in (m for m in block.modules() if hasattr(m, "is_causal")):
            handles.append(module.register_forward_hook(lambda m, args, out: seen["attention"].append(out[0])))
    with torch.no_grad():
        model(rows, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", SUPPORTED)
def test_updates_are_what_is_added_to_the_stream(name: str) -> None:
    model, rows = build(name), tokens()
    hooked = hooked_stream(name, model, rows)
    records = records_of(model, rows)
    near = {"rtol": 1e-4, "atol": 1e-5}
    for index in range(4):
        first, second = (records[f"blocks.{index}.{site}.update"] for site in ("attention", "feed_forward"))
        assert isinstance(first, UpdateRecord)
        torch.testing.assert_close(first.residual, hooked["input"][index], **near)
        if name in PARALLEL:
            assert torch.equal(second.residual, first.residual)
            torch.testing.assert_close(first.update, hooked["attention"][index], **near)
            whole = first.residual + first.update + second.update
        else:
            torch.testing.assert_close(second.residual, hooked["middle"][index], **near)
            middle = first.residual + first.update
            # The model's own sum to the bit; a factor is known to rounding.
            torch.testing.assert_close(middle, second.residual, **({} if name == "Granite" else {"rtol": 0, "atol": 0}))
            whole = second.residual + second.update
        torch.testing.assert_close(whole, hooked["output"][index], **near)


def test_statistics_of_updates_equal_a_plain_computation() -> None:
    model, rows = build("Gemma 2"), tokens()
    hooked = hooked_stream("Gemma 2", model, rows)
    reader = Reader(huggingface_sites(model), ["update"])
    with reader.reading(), torch.no_grad():
        model(rows, use_cache=False)
    names = reader.names["update"]
    arrays = reader.summarize()[1].arrays
    assert names == [f"blocks.{i}.{site}.update" for i in range(4) for site in ("attention", "feed_forward")]
    ratios = []
    for x, middle, out in zip(hooked["input"], hooked["middle"], hooked["output"], strict=True):
        for before, after in ((x, middle), (middle, out)):
            ratios.append(((after - before).norm(dim=-1) / before.norm(dim=-1))[:, 1:].mean())
    torch.testing.assert_close(torch.from_numpy(arrays["update/ratio"][0]), torch.stack(ratios), rtol=1e-4, atol=1e-5)


def updates_in_training(name: str, **dropout: float) -> dict[str, UpdateRecord]:
    model = build(name, **dropout).train()
    return {at: record for at, record in records_of(model, tokens()).items() if isinstance(record, UpdateRecord)}


def test_dropout_of_a_module_is_part_of_the_update() -> None:
    records = updates_in_training("GPT-2", attn_pdrop=0.0, resid_pdrop=0.5)
    first, second = records["blocks.0.attention.update"], records["blocks.0.feed_forward.update"]
    assert (first.update == 0).double().mean() > 0.3
    assert torch.equal(first.residual + first.update, second.residual)


@pytest.mark.parametrize(("name", "option"), [("OPT", "dropout"), ("Phi", "resid_pdrop")])
def test_updates_are_absent_in_training_where_dropout_hides_them(name: str, option: str) -> None:
    assert updates_in_training(name, **{option: 0.5}) == {}
    assert len(updates_in_training(name, **{option: 0.0})) == 8


def test_updates_that_are_no_output_of_a_module_are_absent() -> None:
    model = build("Llama")
    block = blocks_of(model)[1]
    scale = torch.linspace(0.5, 2, 32)

    def scaled(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + scale * attended
        return hidden_states + scale * block.mlp(block.post_attention_layernorm(hidden_states))

    block.forward = scaled
    found = [site.name for site in huggingface_sites(model) if site.kind == "update"]
    assert found == [f"blocks.{i}.{site}.update" for i in (0, 2, 3) for site in ("attention", "feed_forward")]


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_short_row_equals_eager(name: str) -> None:
    model = build(name, implementation=None)
    own = model.config._attn_implementation
    verify(model, tokens(1, 15))
    assert model.config._attn_implementation == own != "sinks"


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_that_ignores_the_interface_is_rejected(name: str) -> None:
    model = build(name)
    with pytest.raises(UserError, match="an Adapter with `attention` and `call`"):
        huggingface_sites(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_that_accepts_the_name_and_ignores_it_is_rejected() -> None:
    model = build("Bloom", implementation="sinks")  # it then has no mask either, and is not causal
    with pytest.raises(UserError, match="0 of 4 attention layers of BloomForCausalLM"):
        huggingface_sites(model)


def skip(block: nn.Module, longer_than: int) -> None:
    own = block.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x if x.shape[1] > longer_than else own(x, *args, **kwargs)

    block.forward = forward  # type: ignore[method-assign]


def test_layers_that_do_not_call_are_counted() -> None:
    model = build("Llama")
    skip(blocks_of(model)[2], longer_than=0)
    with pytest.raises(UserError, match="3 of 4 attention layers of LlamaForCausalLM"):
        huggingface_sites(model)


def test_layers_that_are_skipped_later_are_counted() -> None:
    model = build("Llama")
    skip(blocks_of(model)[2], longer_than=8)  # not in the pass that finds the modules
    with pytest.raises(UserError, match="3 of 4 attention layers reported, but all must: do not skip layers"):
        verify(model, tokens())


def test_what_is_no_transformers_model_is_rejected() -> None:
    with pytest.raises(UserError, match="Linear is no transformers model: use sites_of, or give an Adapter"):
        huggingface_sites(nn.Linear(3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "message"), [("T5", "has an encoder"), ("Bert", "BertSelfAttention 0 is not causal")])
def test_what_is_no_causal_model_is_rejected(kind: str, message: str) -> None:
    small = {"vocab_size": 96, "num_hidden_layers": 1, "num_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**small))
    with pytest.raises(UserError, match=message):
        huggingface_sites(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_half_precision_finds_the_same_sites(name: str) -> None:
    model = build(name)
    expected = [(site.name, site.kind) for site in huggingface_sites(model)]
    assert [(site.name, site.kind) for site in huggingface_sites(model.bfloat16())] == expected


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "gpt-oss"])
def test_no_tensor_has_two_dimensions_of_the_length(name: str) -> None:
    class Shapes(TorchDispatchMode):
        seen: set[tuple[int, ...]] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            for x in made if isinstance(made, tuple | list) else [made]:
                self.seen |= {tuple(x.shape)} if isinstance(x, Tensor) else set()
            return made

    model = build(name, max_position_embeddings=1024)
    reader = Reader(huggingface_sites(model))
    with reader.reading(), torch.no_grad(), Shapes() as shapes:
        model(tokens(1, 1024), use_cache=False)
    reader.summarize()
    assert (1, 1024, 32) in shapes.seen
    assert [shape for shape in shapes.seen if sum(size >= 1024 for size in shape) > 1] == []


def test_verification_finds_logits_that_differ() -> None:
    model = build("Llama")
    module = blocks_of(model)[1].self_attn
    own = module.forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        module.scaling = 0.1 if model.config._attn_implementation == "sinks" else 0.3
        return own(*args, **kwargs)

    module.forward = wrong
    with pytest.raises(UserError, match=r"logits of LlamaForCausalLM differ from eager attention by \d"):
        verify(model, tokens())
