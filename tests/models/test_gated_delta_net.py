"""Gated DeltaNet against transformers' layer; its initialization, counts and options."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sinks.checks import check
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention_config import AttentionConfig
from sinks.models.execution import Execution
from sinks.models.gated_delta_net import STATE, GatedDeltaNet
from sinks.models.short_convolution import ShortConvolution
from sinks.observe import sites_of
from sinks.parallel.tensor_parallel import check_divisible
from tests.families.variants import SMALL
from tests.models.test_experts import split

WIDTH, HEADS, HEAD, VALUES = 16, 2, 4, 2
CONFIG = AttentionConfig("blocks.0.attention", WIDTH, HEADS, HEADS, HEAD, 70, 0.5, 0.5)


def layer(dtype: torch.dtype = torch.float64) -> GatedDeltaNet:
    torch.manual_seed(0)
    made = GatedDeltaNet(CONFIG, values_per_key=VALUES)
    torch.nn.init.normal_(made.norm.weight)
    return made.to(dtype)


def test_a_convolution_is_torchs() -> None:
    part = ShortConvolution(5, kernel=3).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = F.conv1d(F.pad(x.mT, (2, 0)), part.weight, groups=5).mT
    torch.testing.assert_close(part(x), F.silu(expected))


def by_key_head(*parts: Tensor) -> Tensor:
    """Rows of several projections [H * width, D], joined head by head as transformers stores them."""
    return torch.cat([part.unflatten(0, (HEADS, -1)) for part in parts], 1).flatten(0, 1)


def test_the_whole_layer_is_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = modeling.Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_value_heads=HEADS * VALUES, linear_num_key_heads=HEADS, num_hidden_layers=1,
        linear_key_head_dim=HEAD, linear_value_head_dim=HEAD, linear_conv_kernel_dim=4, rms_norm_eps=1e-6,
    )  # fmt: skip
    own, other = layer(torch.float32), modeling.Qwen3NextGatedDeltaNet(config, 0)
    p = dict(own.named_parameters())
    convolutions = [p[f"{name}_convolution.weight"] for name in ("query", "key", "value")]
    other.load_state_dict({
        "in_proj_qkvz.weight": by_key_head(*(p[f"{name}.weight"] for name in ("query", "key", "value", "gate"))),
        "in_proj_ba.weight": by_key_head(p["rate.weight"], p["decay.weight"]),
        "conv1d.weight": torch.cat(convolutions),
        "dt_bias": p["decay_bias"],
        "A_log": p["log_decay_rate"],
        "norm.weight": p["norm.weight"],
        "out_proj.weight": p["out.weight"],
    })  # fmt: skip
    x = torch.randn(2, 70, WIDTH, requires_grad=True)
    found, expected = own(x), other(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(found)
    for mine, theirs in zip(*(torch.autograd.grad((y * weights).sum(), x) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_decays_start_in_the_documented_ranges() -> None:
    made = GatedDeltaNet(AttentionConfig("a", 16, 500, 500, 1, 12, 0.5, 0.5))
    rate, step = made.log_decay_rate.detach().exp(), F.softplus(made.decay_bias.detach())
    assert 0.01 <= rate.min() < 0.5
    assert 15.5 < rate.max() <= 16
    assert 0.001 <= step.min() * (1 + 1e-4) < 0.0011
    assert 0.095 < step.max() <= 0.1 * (1 + 1e-4)
    assert float(step.log().mean().exp()) == pytest.approx(0.01, rel=0.1)


def test_parts_of_the_heads_sum_to_the_whole() -> None:
    part, x = layer(), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    plan, whole = part.shard_plan(), part(x)
    assert plan.keys() == dict(part.named_parameters()).keys()
    parts = [{n: split(p, plan[n], rank, 2) for n, p in part.named_parameters()} for rank in range(2)]
    outputs = [functional_call(part, parameters, (x,)) for parameters in parts]
    torch.testing.assert_close(outputs[0] + outputs[1], whole)


def test_the_linear_maps_and_the_state_are_counted() -> None:
    values = HEADS * VALUES
    maps = WIDTH * (2 * HEADS * HEAD + 3 * values * HEAD + 2 * values)
    assert layer().flops_per_token(999) == {"attention": 2 * maps, STATE: 6 * values * HEAD**2}


@pytest.mark.parametrize("options", [{}, {"values_per_key": 1, "head_dim": 3, "kernel": 1}])
def test_properties_of_every_variant_hold(options: dict[str, Any]) -> None:
    make = partial(CausalLM, 11, 12, architecture=SMALL, mixer=partial(GatedDeltaNet, **options))
    assert [str(line) for line in check(make) if line.result == "failed"] == []


def test_it_has_no_attention_site() -> None:
    model = CausalLM(11, 12, architecture=SMALL, mixer=GatedDeltaNet)
    model.configure_model()
    assert {site.kind for site in sites_of(model)} == {"norm", "update"}
    assert model.decoder is not None
    check_divisible(model.decoder, 2)
    with pytest.raises(UserError, match="tensor_parallel_size is 3, but must divide n_heads = 4"):
        check_divisible(model.decoder, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"head_dim": 0}, "head_dim is 0"), ({"values_per_key": 0}, "values_per_key is 0"),
     ({"kernel": 0}, "convolution kernel is 0"), ({"norm_eps": -1.0}, "norm eps is -1.0")],
)  # fmt: skip
def test_values_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        GatedDeltaNet(CONFIG, **options)


def gradients(execution: Execution) -> list[Tensor]:
    """Of a hybrid's parameters on rows that are longer than a chunk."""
    torch.manual_seed(0)
    pattern = {"mixer": GatedDeltaNet, "mixer_pattern": ("mixer", "attention")}
    model = CausalLM(11, 70, architecture=SMALL, execution=execution, **pattern)  # type: ignore[arg-type]
    model.configure_model()
    rows = torch.randint(0, 11, (2, 71), generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad(model.loss(rows), list(model.parameters())))


def test_a_checkpointed_block_gives_the_same_gradients() -> None:
    found = gradients(Execution()), gradients(Execution(activation_checkpointing=True))
    assert all(torch.equal(own, other) for own, other in zip(*found, strict=True))


@pytest.mark.slow
def test_a_compiled_block_gives_the_same_gradients() -> None:
    torch._dynamo.reset()
    for own, other in zip(gradients(Execution()), gradients(Execution(compile=True)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)
