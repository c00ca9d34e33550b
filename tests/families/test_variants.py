"""What must hold for every variant, whatever it does to sinks."""

import dataclasses

import pytest
import torch

from sinks.models.decoder import reset_parameters
from sinks.models.norms import NormSite
from tests.families.variants import ARCHITECTURES, FEED_FORWARDS, SMALL, VARIANTS, build

every_variant = pytest.mark.parametrize("name", VARIANTS)


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(5))


@every_variant
@torch.no_grad()
def test_a_future_token_never_changes_a_past_logit(name: str) -> None:
    model = build(name).double().eval()
    before = tokens()
    after = before.clone()
    after[:, 7:] = (after[:, 7:] + 3) % 11
    past, changed = model(before)[:, :7], model(after)
    assert torch.equal(past, changed[:, :7])
    assert not torch.equal(model(before)[:, 7:], changed[:, 7:])


@every_variant
@torch.no_grad()
def test_a_prefix_alone_gives_the_same_logits(name: str) -> None:
    model = build(name).double().eval()
    whole = model(tokens())
    for length in (1, 2, 7):
        torch.testing.assert_close(model(tokens()[:, :length]), whole[:, :length], rtol=1e-10, atol=1e-12)


@every_variant
def test_gradients_agree_with_finite_differences(name: str) -> None:
    """In float64, over the embedded input and every parameter."""
    model = build(name, context_length=5).double()
    rows = torch.randint(0, 11, (1, 6), generator=torch.Generator().manual_seed(1))
    assert model.decoder is not None
    inputs = model.decoder.embedding(rows[:, :-1]).detach().requires_grad_()
    parameters = dict(model.decoder.named_parameters())
    names = [n for n, p in parameters.items() if n != "embedding.weight" and p.requires_grad]

    def loss(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(Embedded(model.decoder), {f"decoder.{n}": v for n, v in state.items()}, (x,))

    class Embedded(torch.nn.Module):
        """The decoder behind its embedding."""

        def __init__(self, decoder: torch.nn.Module) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.decoder.positions(x)
            for block in self.decoder.blocks:
                x = block(x)
            logits = self.decoder.head(self.decoder.head_norm(x))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    values = [parameters[n].detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(loss, (inputs, *values), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


@every_variant
def test_every_parameter_takes_part(name: str) -> None:
    model = build(name)
    model.loss(tokens(length=13)).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


@every_variant
def test_a_step_lowers_the_loss_on_a_fixed_batch(name: str) -> None:
    model = build(name)
    rows = tokens(length=13)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = model.loss(rows)
    before.backward()
    optimizer.step()
    assert model.loss(rows) < before


@every_variant
def test_no_parameter_is_zero_dimensional(name: str) -> None:
    """FSDP2 refuses them."""
    assert [n for n, p in build(name).named_parameters() if p.dim() == 0] == []


@every_variant
def test_meta_device_initialisation_equals_eager_initialisation(name: str) -> None:
    torch.manual_seed(3)
    eager = build(name)
    with torch.device("meta"):
        meta = build(name)
    meta.to_empty(device="cpu")
    torch.manual_seed(3)
    reset_parameters(meta)
    assert [n for n, v in eager.state_dict().items() if not torch.equal(v, meta.state_dict()[n])] == []
    assert all(torch.equal(a, b) for a, b in zip(eager.buffers(), meta.buffers(), strict=True) if a.dim() > 1)


@every_variant
@torch.no_grad()
def test_attention_maps_are_causal_and_give_the_layers_output(name: str) -> None:
    model = build(name).double().eval()
    maps = model.attention_maps(tokens(batch=1))
    assert maps.shape == (2, 4, 12, 12)
    assert maps.triu(1).abs().max() < 1e-12
    assert maps.min() > -1e-12
    block = model.decoder.blocks[0]  # type: ignore[union-attr]
    x = block.attention_norm(model.decoder.positions(model.decoder.embedding(tokens(batch=1))))  # type: ignore[union-attr]
    q, k, v = block.attention.project(x)
    if name != "key-value-bias":
        expected = block.attention.normalizer.attend(q, k, v, None)[0][0]
        torch.testing.assert_close(maps[0] @ v[0].repeat_interleave(2, dim=0).float(), expected.float())
    totals = maps.sum(-1)
    if name in ("baseline", "pre-affine", "gated", "soft-cap", "dyt"):
        torch.testing.assert_close(totals, torch.ones_like(totals))
    if name in ("off-by-one", "learnable-sink", "key-bias"):
        assert (totals < 1).all()


@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_causal_and_learns(architecture: str, feed_forward: str) -> None:
    options = ARCHITECTURES[architecture]
    model = build(
        "baseline",
        architecture=dataclasses.replace(SMALL, **options),
        feed_forward=FEED_FORWARDS[feed_forward],
    ).double()
    before = tokens()
    after = before.clone()
    after[:, 9:] = (after[:, 9:] + 1) % 11
    assert torch.equal(model(before)[:, :9], model(after)[:, :9])
    model.loss(tokens(length=13)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    tied = model.decoder.head.weight is model.decoder.embedding.weight  # type: ignore[union-attr]
    assert tied == options["tied_embeddings"]


def test_gated_norm_stands_at_the_blocks_norms_and_not_before_the_head() -> None:
    model = build("gated-norm")
    kinds = {m.input.site: type(m.norm).__name__ for m in model.modules() if isinstance(m, NormSite)}
    assert kinds.pop("head.norm.input") == "RMSNorm"
    assert set(kinds.values()) == {"GatedNorm"}
    assert len(kinds) == 4
