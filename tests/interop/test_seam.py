"""What the seam refuses, what it leaves as it was, and its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

from sinks.errors import UserError
from sinks.interop.adapter import Adapter
from sinks.interop.seam import AttentionCall
from sinks.interop.sites import huggingface_sites
from sinks.observe import Reader
from tests.interop.families import build, tokens

ONES = torch.ones(2, 12, dtype=torch.int64)
PADDED = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ONES[:, 3:]], dim=1)
PACKED = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
TRAPS: dict[str, tuple[dict[str, Any], str]] = {
    "padding": ({"attention_mask": PADDED}, "attention_mask excludes 6 tokens"),
    "packed rows with a mask": ({"position_ids": PACKED, "attention_mask": ONES}, "lets documents see one another"),
    "shifted positions": ({"position_ids": torch.arange(3, 15)[None]}, "position_ids are not 0, 1, 2"),
    "a mask of one's own": ({"attention_mask": torch.zeros(2, 1, 12, 12)}, r"got a mask \(2, 1, 12, 12\)"),
    "packed lengths": ({"cu_seq_lens_q": torch.tensor([0, 5, 12])}, "got packed rows"),
}


def reader_of(model: PreTrainedModel) -> Reader:
    return Reader(huggingface_sites(model), groups=["mass", "residual"])


@pytest.mark.parametrize(
    ("name", "trap"),
    [
        (name, trap)
        for name in ("Llama", "Gemma 2", "gpt-oss", "GPT-2")
        for trap in TRAPS
        if (name, trap) != ("GPT-2", "packed lengths")  # GPT-2 does not pass them on
    ],
)
def test_rows_that_are_not_whole_are_rejected(name: str, trap: str) -> None:
    arguments, message = TRAPS[trap]
    model = build(name)
    reader = reader_of(model)
    with pytest.raises(UserError, match=message) as found, reader.reading(), torch.no_grad():
        model(tokens(), **arguments)
    assert "\n" not in str(found.value)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-2"])
def test_a_mask_of_ones_and_ordinary_positions_change_nothing(name: str) -> None:
    model = build(name)
    found = []
    for arguments in ({}, {"attention_mask": ONES, "position_ids": torch.arange(12)[None]}):
        reader = reader_of(model)
        with reader.reading(), torch.no_grad():
            model(tokens(), **arguments)
        found.append(reader.summarize()[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["Llama", "gpt-oss", "GPT-2", "OPT", "GPT-NeoX"])
@pytest.mark.parametrize("configured", [False, True])
def test_weights_that_would_be_missing_are_rejected(name: str, configured: bool) -> None:
    model = build(name)
    reader = reader_of(model)
    model.config.output_attentions = configured
    with pytest.raises(UserError, match="output_attentions is true, but no weights exist"), reader.reading():
        model(tokens(), use_cache=False, **({} if configured else {"output_attentions": True}))
    reader.stop()
    assert model(tokens(), use_cache=False, output_attentions=True).attentions[-1].shape == (2, 4, 12, 12)


def test_generation_is_rejected() -> None:
    model = build("Llama")
    with pytest.raises(UserError, match="the cache holds 12 tokens"), reader_of(model).reading():
        model.generate(tokens(), max_new_tokens=3, do_sample=False)
    assert model.config._attn_implementation == "eager"
    model.generate(tokens(), max_new_tokens=3, do_sample=False)


def test_dropped_attention_weights_are_rejected() -> None:
    model = build("Llama", attention_dropout=0.1)
    reader = reader_of(model)
    model.train()
    with pytest.raises(UserError, match=r"LlamaAttention 0 drops 0.1 of its weights"), reader.reading():
        model(tokens())


def test_attention_in_chunks_is_rejected_where_a_row_is_longer() -> None:
    model = build("Llama 4")
    reader = reader_of(model)
    with pytest.raises(UserError, match=r"limits attention to 16 tokens.*rows of at most 16"), reader.reading():
        model(tokens(2, 17))


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "gpt-oss", "Qwen3-Next", "DeepSeek-V3"])
def test_gradients_equal_those_of_eager(name: str) -> None:
    model = build(name)
    reader = reader_of(model)
    grads = []
    for reading in (False, True):
        if reading:
            reader.start()
        model.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        grads.append([torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()])
    reader.stop()
    largest = max(float(g.abs().max()) for g in grads[0])
    for own, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5 * largest)


def test_the_models_own_code_runs_when_nobody_listens() -> None:
    model = build("Llama", implementation=None)
    own = model.config._attn_implementation
    with torch.no_grad():
        before = model(tokens()).logits
        reader = reader_of(model)
        assert torch.equal(model(tokens()).logits, before)
        with reader.reading():
            model(tokens())
            assert model.config._attn_implementation == "sinks"
        assert model.config._attn_implementation == own != "sinks"
        assert torch.equal(model(tokens()).logits, before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_runs_what_the_forward_pass_ran(use_reentrant: bool) -> None:
    """Checkpointed blocks are computed again in the backward pass, and then not read again."""
    model = build("gpt-oss").train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    reader = reader_of(model)
    used: list[str] = []
    block = model.model.layers[0].self_attn
    block.register_forward_pre_hook(lambda m, args: used.append(m.config._attn_implementation))
    grads = []
    for reading in (True, False):
        model.zero_grad()
        if reading:
            reader.start()
        loss = model(tokens(), labels=tokens(), use_cache=False).loss
        reader.stop()
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert used == ["sinks", "sinks", "eager", "eager"]
    assert model.config._attn_implementation == "eager"
    largest = max(float(g.abs().max()) for g in grads[1])
    for own, expected in zip(*grads, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5 * largest)


def test_recomputation_is_not_read_again() -> None:
    model = build("Llama").train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        reader = reader_of(model)
        with reader.reading():
            model(tokens(), labels=tokens(), use_cache=False).loss.backward()
        found.append({key: float(m["queries"]) for key, m in reader.totals().items() if "queries" in m})
    assert found[0] == found[1] != {}


class Halves(nn.Module):
    """Attention with the values' width of its own, in a model that knows nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(16, 2 * 3 * 8), nn.Linear(16, 16)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.project(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).flatten(2))


class MadeUpBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.mixer, self.two, self.wide = nn.RMSNorm(16), Halves(), nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.one(x))
        return x + self.wide(self.two(x)).relu()


class MadeUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.steps, self.end = nn.Embedding(96, 16), nn.Sequential(*(MadeUpBlock() for _ in range(2))), None
        self.last = nn.RMSNorm(16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.steps(self.embed(ids))) @ self.embed.weight.T


class MadeUpAdapter(Adapter):
    scale: float | None = None

    def run(self, model: Any, tokens: Tensor) -> None:
        model(tokens)

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.steps)

    def attention(self, block: Any) -> nn.Module:
        return block.mixer

    def call(self, attention: Any, args: Any, kwargs: Any) -> AttentionCall:
        return AttentionCall(*attention.heads(args[0]), scale=self.scale)


def test_an_adapter_reads_an_architecture_of_ones_own() -> None:
    model = MadeUp()
    sites = huggingface_sites(model, MadeUpAdapter())
    assert [site.name for site in sites] == [
        # The feed-forward's update is absent, because no module returns it.
        "blocks.0.attention.norm", "blocks.0.attention", "blocks.0.attention.update", "blocks.0.feed_forward.norm",
        "blocks.1.attention.norm", "blocks.1.attention", "blocks.1.attention.update", "blocks.1.feed_forward.norm",
        "head.norm",
    ]  # fmt: skip
    reader = Reader(sites)
    with reader.reading(), torch.no_grad():
        model(tokens())
    arrays = reader.summarize()[1].arrays
    with torch.no_grad():
        x = model.embed(tokens())
        q, k, _ = model.steps[0].mixer.heads(model.steps[0].one(x))
        scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
        expected = scores.softmax(-1)[:, :, 1:, 0].mean((0, 2))
    torch.testing.assert_close(torch.from_numpy(arrays["attention/first_token_mass"][0, 0]), expected)
    torch.testing.assert_close(torch.from_numpy(arrays["residual/mean_abs"][0, 0]), x[:, 1:].abs().mean((0, 1)))
    assert "attention/contribution_share" in arrays


class FalconAdapter(Adapter):
    """Falcon's attention does not call transformers' interface."""

    def attention(self, block: Any) -> nn.Module:
        return block.self_attention

    def call(self, attention: Any, args: Any, kwargs: Any) -> AttentionCall:
        batch, length, _ = args[0].shape
        fused = attention.query_key_value(args[0]).view(batch, length, -1, attention.head_dim).transpose(1, 2)
        heads = attention.num_heads
        q, k = apply_rotary_pos_emb(fused[:, :heads], fused[:, heads : heads + 1], *kwargs["position_embeddings"])
        return AttentionCall(q, k, fused[:, heads + 1 :])


def test_an_adapter_reads_a_family_that_ignores_the_interface() -> None:
    model = build("Falcon")
    with torch.no_grad():
        maps = torch.stack(model(tokens(), output_attentions=True).attentions)
    sites = huggingface_sites(model, FalconAdapter())
    reader = Reader(sites)
    with reader.reading(), torch.no_grad():
        model(tokens(), use_cache=False)
        assert model.config._attn_implementation == "eager"
    arrays = reader.summarize()[1].arrays
    found = torch.from_numpy(arrays["attention/first_token_mass"][0])
    torch.testing.assert_close(found, maps[..., 1:, 0].mean((1, 3)), rtol=1e-4, atol=1e-6)
    assert "attention/contribution_share" in arrays
    with pytest.raises(UserError, match="attention_mask excludes 6"), reader.reading():
        model(tokens(), attention_mask=PADDED, use_cache=False)


def test_an_adapter_that_describes_other_attention_is_rejected() -> None:
    adapter = MadeUpAdapter()
    adapter.scale = 0.1
    with pytest.raises(UserError, match="what `call` describes is not what Halves computes"):
        huggingface_sites(MadeUp(), adapter)


def test_an_empty_list_of_sites_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"no site to read: .*huggingface_sites"):
        Reader([])
