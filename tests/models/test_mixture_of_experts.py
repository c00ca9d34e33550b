"""The mixture of experts against a dense loop in float64 and against transformers; shards, counts and statistics."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sinks.errors import UserError
from sinks.models import grouped
from sinks.models.feed_forward import FeedForwardConfig, SwiGLU
from sinks.models.mixture_of_experts import MixtureOfExperts
from sinks.models.routed_experts import RoutedExperts
from sinks.observe import Reader, sites_of
from sinks.plan.layout import Layout, read_precision
from sinks.plan.plan import Batch, plan_model
from tests.families.variants import build
from tests.models.test_experts import split

WIDTH, EXPERT, EXPERTS, CHOSEN = 8, 8, 5, 2
CONFIG = FeedForwardConfig("blocks.0.feed_forward", WIDTH, 2 * EXPERT, 0.5, 0.5)


def mixture(dtype: torch.dtype = torch.float64) -> MixtureOfExperts:
    torch.manual_seed(0)
    made = MixtureOfExperts(CONFIG, EXPERTS, CHOSEN, granularity=2).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def by_expert(part: MixtureOfExperts, x: Tensor) -> Tensor:
    """The definition: every expert of every token [N, D], times its weight, which is zero where it is not chosen."""
    probabilities = F.linear(x, part.router.weight).softmax(-1)
    chosen = probabilities >= probabilities.topk(CHOSEN).values[:, -1:]
    weights = probabilities * chosen
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.sigmoid(x @ part.shared_gate.weight[0])[:, None] * part.shared(x)
    for expert in range(EXPERTS):
        gate, up = x @ part.gate_up[expert][:, ::2], x @ part.gate_up[expert][:, 1::2]
        out = out + weights[:, expert, None] * ((F.silu(gate) * up) @ part.down[expert])
    return out


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float64, False), (torch.float32, True)])
def test_outputs_and_gradients_are_those_of_a_dense_loop(
    dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by torch's grouped product, which has a form for CPUs; the kernel itself needs a GPU."""
    if kernel:
        monkeypatch.setattr(grouped, "_has_kernel", lambda x, width: True)
    part, x = mixture(dtype), torch.randn(2, 7, WIDTH, dtype=dtype, requires_grad=True)
    expected = by_expert(part, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(part(x), expected, **({"rtol": 1e-4, "atol": 1e-4} if kernel else {}))
    inputs, weights = [x, *part.parameters()], torch.randn_like(expected)
    found = torch.autograd.grad((part(x) * weights).sum(), inputs)
    for own, other in zip(found, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(own, other, **({"rtol": 1e-4, "atol": 1e-3} if kernel else {}))


def test_an_expert_without_tokens_has_no_gradient_in_torchs_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "_has_kernel", lambda x, width: True)
    x, matrices = torch.randn(3, 8), torch.randn(3, 8, 4, requires_grad=True)
    grouped.grouped_product(x, matrices, torch.tensor([2, 0, 1])).sum().backward()
    assert matrices.grad is not None
    assert torch.equal(matrices.grad[1], torch.zeros(8, 4))
    torch.testing.assert_close(matrices.grad[0], x[:2].sum(0)[:, None].expand(8, 4))


def test_the_whole_layer_is_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = modeling.Qwen3NextConfig(
        hidden_size=WIDTH, num_experts=EXPERTS, num_experts_per_tok=CHOSEN, moe_intermediate_size=EXPERT,
        shared_expert_intermediate_size=EXPERT, norm_topk_prob=True, num_hidden_layers=1,
    )  # fmt: skip
    own, other = mixture(torch.float32), modeling.Qwen3NextSparseMoeBlock(config)
    other.load_state_dict({
        "gate.weight": own.router.weight,
        "experts.gate_up_proj": torch.cat([own.gate_up[..., ::2], own.gate_up[..., 1::2]], -1).mT,
        "experts.down_proj": own.down.mT,
        "shared_expert.gate_proj.weight": own.shared.gate.weight,
        "shared_expert.up_proj.weight": own.shared.up.weight,
        "shared_expert.down_proj.weight": own.shared.down.weight,
        "shared_expert_gate.weight": own.shared_gate.weight,
    })  # fmt: skip
    x = torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(own(x), other(x), rtol=1e-4, atol=1e-4)


def test_parts_of_the_hidden_channels_sum_to_the_whole() -> None:
    part, x = mixture(), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    plan, whole = part.shard_plan(), part(x)
    assert plan.keys() == dict(part.named_parameters()).keys()
    parts = [{n: split(p, plan[n], rank, 2) for n, p in part.named_parameters()} for rank in range(2)]
    outputs = [functional_call(part, parameters, (x,)) for parameters in parts]
    torch.testing.assert_close(outputs[0] + outputs[1], whole)


def test_the_experts_of_a_token_are_counted() -> None:
    part = mixture()
    maps = {"feed-forward": (CHOSEN + 1) * 3 * WIDTH * EXPERT, "routers": WIDTH * (EXPERTS + 1)}
    assert part.flops_per_token(12) == {kind: 2 * size for kind, size in maps.items()}
    assert part.idle_parameters() == (EXPERTS - CHOSEN) * 3 * WIDTH * EXPERT


def test_as_many_experts_as_the_granularity_cost_what_the_dense_layer_costs() -> None:
    kinds = (partial(MixtureOfExperts, experts=8, chosen=3, granularity=4), SwiGLU)
    counts = [build("baseline", feed_forward=kind).meta_decoder().flops_per_token(12) for kind in kinds]
    found, expected = (flops.forward_by_kind["feed-forward"] for flops in counts)
    assert found == expected
    assert counts[0].forward_by_kind["routers"] == 2 * 2 * 16 * (8 + 1)


@pytest.mark.parametrize("split_over", [1, 2])
def test_a_plan_needs_no_values_and_states_what_a_token_uses(split_over: int) -> None:
    model = build("experts")
    layout = Layout(2, "sharded", split_over)
    plan = plan_model(model, layout, read_precision("bf16-mixed"), Batch(11, 12, 2, 1), "cuda")
    assert plan.total - plan.active == 2 * 3 * (3 * 16 * 6)
    assert plan.memory.activations > 0


def test_router_statistics_are_those_of_the_router() -> None:
    model = build("experts").eval()
    tokens = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(2))
    reader, found = Reader(sites_of(model)), []
    layers = [module for module in model.modules() if isinstance(module, RoutedExperts)]
    for layer in layers:
        layer.router.register_forward_hook(lambda module, inputs, logits: found.append(logits.detach()))
    with reader.reading(), torch.no_grad():
        model(tokens)
    scalars, statistics = reader.summarize()
    assert statistics.sites["router"] == [f"blocks.{i}.feed_forward.router" for i in range(2)]
    for index, logits in enumerate(found):
        rows = logits.topk(2).indices.flatten().bincount(minlength=5).double()
        loads = torch.from_numpy(statistics.arrays["router/load"][0, index]).double()
        torch.testing.assert_close(loads, rows / rows.mean(), rtol=1e-6, atol=1e-6)
    entropy = torch.stack([torch.distributions.Categorical(logits=logits).entropy().mean() for logits in found]).mean()
    assert scalars["router/entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert scalars["router/load_max"] == statistics.arrays["router/load_max"].max()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"experts": 0}, "experts is 0"), ({"chosen": 9}, "chosen experts is 9, but must be .* at most 8"),
     ({"granularity": 0}, "granularity is 0"),
     ({"granularity": 5}, "granularity is 5, but must divide ffn_hidden = 16")],
)  # fmt: skip
def test_values_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MixtureOfExperts(CONFIG, **options)
