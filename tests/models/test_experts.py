"""Experts against a loop over tokens in float64; how they are split and counted."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Shard
from torch.func import functional_call

from sinks.checks import check
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.experts import Experts
from sinks.models.feed_forward import FeedForwardConfig
from sinks.models.grouped import grouped_product
from sinks.models.splits import Split
from sinks.parallel.tensor_parallel import _placement
from sinks.plan.layout import Layout, read_precision
from sinks.plan.plan import Batch, plan_model
from tests.families.variants import SMALL

WIDTH, HIDDEN, EXPERTS, CHOSEN = 8, 6, 5, 2
CONFIG = FeedForwardConfig("blocks.0.feed_forward", WIDTH, HIDDEN, 0.5, 0.5)


def experts() -> Experts:
    torch.manual_seed(0)
    made = Experts(CONFIG, EXPERTS, CHOSEN, limit=0.4).double()  # a limit that many values exceed
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def by_token(part: Experts, x: Tensor) -> Tensor:
    """The definition, one token [D] at a time."""
    logits, chosen = part.router(x).topk(CHOSEN)
    out = torch.zeros_like(x)
    for weight, expert in zip(logits.softmax(-1), chosen.tolist(), strict=True):
        hidden = x @ part.gate_up[expert] + part.gate_up_bias[expert]
        gate, up = hidden[::2].clamp(max=part.limit), hidden[1::2].clamp(-part.limit, part.limit)
        inner = (up + 1) * gate * torch.sigmoid(part.alpha * gate)
        out = out + weight * (inner @ part.down[expert] + part.down_bias[expert])
    return out


def test_outputs_and_gradients_are_those_of_a_loop_over_tokens() -> None:
    part, x = experts(), torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([torch.stack([by_token(part, token) for token in row]) for row in x])
    torch.testing.assert_close(part(x), expected)
    inputs = [x, *part.parameters()]
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((part(x) * weights).sum(), inputs)
    for own, other in zip(found, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(own, other)


def test_a_group_may_be_empty() -> None:
    x, matrices = torch.randn(3, WIDTH), torch.randn(3, WIDTH, 4)
    found = grouped_product(x, matrices, torch.tensor([2, 0, 1]))
    assert torch.equal(found, torch.cat([x[:2] @ matrices[0], x[2:] @ matrices[2]]))
    assert torch.equal(grouped_product(x, matrices, torch.tensor([0, 0, 3])), x @ matrices[2])


def split(value: Tensor, how: Split, rank: int, size: int) -> Tensor:
    if how.how == "added":
        return value / size
    placement = _placement(how, value.dim())
    return value.chunk(size, placement.dim)[rank] if isinstance(placement, Shard) else value


def test_parts_of_the_hidden_channels_sum_to_the_whole() -> None:
    part, x = experts(), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    plan, whole = part.shard_plan(), part(x)
    assert plan.keys() == dict(part.named_parameters()).keys()
    parts = [{n: split(p, plan[n], rank, 2) for n, p in part.named_parameters()} for rank in range(2)]
    outputs = [functional_call(part, parameters, (x,)) for parameters in parts]
    torch.testing.assert_close(outputs[0] + outputs[1], whole)


def test_the_chosen_experts_are_counted() -> None:
    products = CHOSEN * (WIDTH * 2 * HIDDEN + HIDDEN * WIDTH)
    assert experts().flops_per_token(12) == {"routers": 2 * WIDTH * EXPERTS, "feed-forward": 2 * products}


@pytest.mark.parametrize("split_over", [1, 2])
def test_a_plan_needs_no_values(split_over: int) -> None:
    model = CausalLM(11, 12, architecture=SMALL, feed_forward=partial(Experts, experts=4, chosen=2))
    layout = Layout(2, "sharded", split_over)
    plan = plan_model(model, layout, read_precision("bf16-mixed"), Batch(11, 12, 2, 1), "cuda")
    assert plan.parameters["routers"] == 2 * (4 * 16 + 4)
    assert plan.parameters["feed-forward"] == 2 * 4 * (16 * 48 + 48 + 24 * 16 + 16)
    assert plan.memory.activations > 0


def test_properties_of_every_variant_hold() -> None:
    make = partial(CausalLM, 11, 12, architecture=SMALL, feed_forward=partial(Experts, experts=4, chosen=2))
    assert [str(line) for line in check(make) if line.result == "failed"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [({"experts": 0}, "experts is 0"), ({"chosen": 33}, "chosen experts is 33, but must be .* at most 32"),
     ({"limit": 0.0}, "limit is 0.0"), ({"alpha": -1.0}, "alpha is -1.0")],
)  # fmt: skip
def test_values_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experts(CONFIG, **options)
