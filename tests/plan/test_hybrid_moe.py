"""The formulas against modules, built on the meta device."""

import dataclasses

import pytest
import torch
from torch import nn

from sinks.errors import UserError
from sinks.models.attention import Attention
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import ElementwiseGate
from sinks.models.feed_forward import FeedForwardConfig, SwiGLU
from sinks.models.gated_norm import GatedNorm
from sinks.models.normalizers import Softmax
from sinks.models.norms import RMSNorm
from sinks.plan.hybrid_moe import HybridMoE

SMALL = HybridMoE(
    n_layers=8, d_model=24, softmax_every=4, n_heads=4, n_kv_heads=2, head_dim=6, linear_qk_heads=2, linear_v_heads=4,
    linear_head_dim=8, n_experts=5, experts_per_token=2, expert_hidden=7, norm_rank=3,
)  # fmt: skip
VOCABULARY = 101


class GatedDeltaNet(nn.Module):
    """The parameters of a layer as Qwen3-Next holds them, for counting only."""

    def __init__(self, h: HybridMoE) -> None:
        super().__init__()
        keys, values = h.linear_qk_heads * h.linear_head_dim, h.linear_v_heads * h.linear_head_dim
        self.queries_keys_values_gate = nn.Linear(h.d_model, 2 * keys + 2 * values, bias=False)
        self.strength_decay = nn.Linear(h.d_model, 2 * h.linear_v_heads, bias=False)
        width = 2 * keys + values
        self.convolution = nn.Conv1d(width, width, h.convolution, groups=width, bias=False)
        self.decay_bias = nn.Parameter(torch.empty(h.linear_v_heads))
        self.decay_rate = nn.Parameter(torch.empty(h.linear_v_heads))
        self.norm = RMSNorm(h.linear_head_dim)
        self.out = nn.Linear(values, h.d_model, bias=False)


def layers(h: HybridMoE) -> nn.ModuleDict:
    """A model of a hybrid's widths."""
    shape = AttentionConfig("", h.d_model, h.n_heads, h.n_kv_heads, h.head_dim, 16, 0.02, 0.02, qk_norm=True)

    def expert() -> nn.Module:
        return SwiGLU(FeedForwardConfig("", h.d_model, h.expert_hidden, 0.02, 0.02))

    parts: dict[str, nn.Module] = {"embedding": nn.Embedding(VOCABULARY, h.d_model), "norm": RMSNorm(h.d_model)}
    parts["head"] = nn.Linear(h.d_model, VOCABULARY, bias=False)
    for i in range(h.n_layers):
        softmax = (i + 1) % h.softmax_every == 0
        mixer = Attention(shape, Softmax, ElementwiseGate) if softmax else GatedDeltaNet(h)
        norms = [GatedNorm(h.d_model, rank=h.norm_rank) for _ in range(2)]
        experts = nn.ModuleList(expert() for _ in range(h.n_experts))
        router = nn.Linear(h.d_model, h.n_experts, bias=False)
        shared = nn.ModuleList([expert(), nn.Linear(h.d_model, 1, bias=False)])
        parts[f"layer{i}"] = nn.ModuleList([mixer, *norms, experts, router, shared])
    return nn.ModuleDict(parts)


def number(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_modules() -> None:
    with torch.device("meta"):
        model = layers(SMALL)
    counts = SMALL.parameters_by_kind(VOCABULARY)
    assert sum(counts.values()) == number(model)
    experts = [model[f"layer{i}"][3] for i in range(8)]  # type: ignore[index]
    assert counts["experts"] == sum(number(e) for e in experts)
    assert SMALL.active_parameters(VOCABULARY) == number(model) - sum(number(e) for es in experts for e in es[2:])
    tied = dataclasses.replace(SMALL, tied_embeddings=True)
    assert sum(tied.parameters_by_kind(VOCABULARY).values()) == number(model) - number(model["head"])


def test_operations_are_two_per_weight_and_token_met() -> None:
    """All but the state and the scores are products with weights that a token meets."""
    by_kind = SMALL.flops(VOCABULARY, tokens=16).forward_by_kind
    state = 2 * 6 * 3 * 4 * 8 * 8  # six layers: read, write, read a state of 8 x 8 in each of 4 heads
    scores = 2 * 2 * 2 * (4 * 6) * 16 / 2  # two layers: two products with half of 16 keys on average
    assert by_kind.pop("linear attention state") == state
    assert by_kind.pop("attention scores") == scores
    with torch.device("meta"):
        model = layers(SMALL)
    idle = number(model["embedding"])
    idle += sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    unmet = sum(number(e) for i in range(8) for e in model[f"layer{i}"][3][2:])  # type: ignore[index]
    assert sum(by_kind.values()) == 2 * (number(model) - idle - unmet)


def test_pieces_add_up() -> None:
    pieces = SMALL.pieces(VOCABULARY)
    total = sum(SMALL.parameters_by_kind(VOCABULARY).values())
    assert total <= pieces.total < total + SMALL.n_layers


@pytest.mark.parametrize(("field", "value"), [("n_kv_heads", 0), ("expert_hidden", -1), ("norm_rank", -1)])
def test_widths_below_their_least_are_refused(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"hybrid_moe.{field} is {value}, but must be at least"):
        dataclasses.replace(SMALL, **{field: value})


def test_more_experts_per_token_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="experts_per_token is 6, but there are only 5"):
        dataclasses.replace(SMALL, experts_per_token=6)
