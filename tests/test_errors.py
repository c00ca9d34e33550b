"""Every number has a range: what is outside is rejected with its value, its limit and a remedy."""

import math
from functools import partial
from typing import Any

import pytest

from sinks.callbacks import RunCheckpoints, SinkStatistics
from sinks.errors import UserError, require
from sinks.families.optimizers import Optimization, make_optimizer, placeholders
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import ElementwiseGate
from sinks.models.clips import Clamp, ClippedNorm
from sinks.models.decoder import Architecture
from sinks.models.derf import Derf
from sinks.models.gains import GainFreeRMSNorm
from sinks.models.gated_norm import AmplifyingGatedNorm, GatedNorm
from sinks.models.layer_norm import LayerNorm
from sinks.models.normalizers import ClippedSoftmax, LearnableSink, SoftCap
from sinks.models.norms import DyT, PreAffine, RMSNorm
from sinks.models.seed_norm import SeeDNorm
from sinks.runs.trainer_options import check_trainer_options


def test_the_message_has_value_limits_and_remedy() -> None:
    with pytest.raises(UserError) as found:
        require("x", -1, at_least=0, below=1, remedy="give 0.5")
    assert str(found.value) == "x is -1, but must be at least 0 and below 1: give 0.5"
    with pytest.raises(UserError, match="x is nan, but must be finite: give 1"):
        require("x", math.nan, at_least=0, remedy="give 1")


def test_limits_are_inclusive_or_not_as_named() -> None:
    assert require("x", 0, at_least=0, at_most=0, remedy="") == 0
    with pytest.raises(UserError, match="x is None, but must be finite: give 1"):
        require("x", None, above=0, remedy="give 1")  # type: ignore[type-var]
    assert require("x", 10**400, above=0, remedy="") == 10**400  # an integer that no float holds
    for limits in ({"above": 0}, {"below": 0}, {"at_least": 1}, {"at_most": -1}):
        with pytest.raises(UserError):
            require("x", 0, **limits, remedy="")


ATTENTION = partial(
    AttentionConfig, "a", d_model=8, n_heads=2, n_kv_heads=2, head_dim=4, context_length=8, init_std=0.02,
    output_std=0.02,
)  # fmt: skip
OUTSIDE: list[tuple[Any, str, list[float]]] = [
    (Optimization, "lr", [0, -1, math.inf, math.nan]),
    (Optimization, "eps", [0, -1, math.nan]),
    (lambda beta: Optimization(betas=(0.9, beta)), "beta", [1, 1.5, -0.1, math.nan]),
    (lambda beta: Optimization(betas=(beta, 0.9)), "beta", [1, 1.5, -0.1, math.nan]),
    (Optimization, "weight_decay", [-1, math.inf]),
    (Optimization, "scale_weight_decay", [-1, math.nan]),
    (Optimization, "scale_lr_multiplier", [-1, math.inf]),
    (Optimization, "warmup_steps", [-5]),
    (Optimization, "final_lr_ratio", [2, -0.1, math.nan]),
    (Architecture, "init_std", [-1, math.nan, math.inf]),
    (Architecture, "embedding_std", [-1, math.nan]),
    (Architecture, "rope_base", [0, -1, math.nan, math.inf]),
    (Architecture, "d_model", [0, 2**63]),
    (partial(RMSNorm, 8), "eps", [-1, math.nan]),
    (partial(PreAffine, 8), "eps", [-1, math.inf]),
    (partial(DyT, 8), "alpha", [0, -1, math.nan]),
    (partial(GainFreeRMSNorm, 8), "eps", [-1, math.nan]),
    (partial(LayerNorm, 8), "eps", [-1, math.nan]),
    (partial(SeeDNorm, 8), "eps", [-1, math.nan]),
    (partial(SeeDNorm, 8), "alpha", [0, -1, math.nan]),
    (partial(Derf, 8), "alpha", [0, -1, math.nan]),
    (partial(AmplifyingGatedNorm, 8, rank=2), "limit", [0, -1, math.nan]),
    (partial(GatedNorm, 8), "rank", [0, 9]),
    (partial(GatedNorm, 8, rank=2), "init_std", [-1, math.nan]),
    (partial(GatedNorm, 8, rank=2), "initial_gate", [0, 1, math.nan]),
    (partial(ElementwiseGate, ATTENTION()), "initial_gate", [0, 1, math.nan]),
    (partial(ClippedSoftmax, ATTENTION()), "alpha", [0, 8, math.nan]),
    (partial(SoftCap, ATTENTION()), "cap", [0, -1, math.inf]),
    (partial(LearnableSink, ATTENTION()), "sink_scale", [0, -1, math.nan]),
    (partial(Clamp, "c"), "threshold", [0, -1, math.nan, math.inf]),
    (partial(ClippedNorm, 8), "medians", [0, math.nan]),
    (SinkStatistics, "interval", [0]),
    (SinkStatistics, "sink_dimensions", [0]),
    (RunCheckpoints, "keep", [0]),
    (lambda **options: check_trainer_options(options), "log_every_n_steps", [0, -1]),
    (lambda **options: check_trainer_options(options), "gradient_clip_val", [-1, math.nan, math.inf]),
]


@pytest.mark.parametrize(("make", "option", "values"), OUTSIDE)
def test_a_number_outside_its_range_is_rejected(make: Any, option: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"is {value}, but must be .+: \S"):
            make(**{option: value})


def test_what_an_optimizer_rejects_is_a_users_error_before_there_is_a_model() -> None:
    import torch
    from torch import nn

    model = nn.Linear(3, 2, device="meta")
    groups = placeholders([{"params": list(model.parameters()), "name": "hidden", "lr": 0.1}])
    assert [tuple(p.shape) for p in groups[0]["params"]] == [(1, 1), (1,)]
    make_optimizer(torch.optim.NAdam, groups)
    with pytest.raises(UserError, match=r"the optimizer cannot be built: Invalid momentum_decay value: -1"):
        make_optimizer(partial(torch.optim.NAdam, momentum_decay=-1), groups)
