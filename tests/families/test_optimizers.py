"""Every parameter in one group, Muon beside AdamW, and weights that stay when a gradient is not finite."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from sinks.errors import UserError
from sinks.families import CausalLM, Optimization
from sinks.families.optimizers import AdamW, MuonAdamW, SkipGuard, check_coverage, parameter_groups
from sinks.models.gains import ZeroCenteredRMSNorm
from sinks.models.norms import RMSNorm
from tests.checks.user_parts import ForgetfulAdamW, TemperedNorm
from tests.families.variants import SMALL, VARIANTS, build

OPTIONS = Optimization(weight_decay=0.3, scale_weight_decay=0.1, scale_lr_multiplier=5.0)


def names_by_group(model: CausalLM) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OPTIONS)
    return {group["name"]: {names[p] for p in group["params"]} for group in groups}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_in_one_group_whatever_its_dimensions(name: str) -> None:
    model = build(name)
    named = names_by_group(model)
    assert set().union(*named.values()) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert sum(map(len, named.values())) == len(set().union(*named.values()))
    stacks = {n for n, p in model.named_parameters() if p.dim() > 2}  # of experts' matrices, of convolutions
    routers = {n for n, p in model.named_parameters() if p.dim() == 2 and ("router." in n or "shared_gate." in n)}
    assert bool(routers) == (name == "experts")
    assert named["embeddings"] == {"decoder.embedding.weight", "decoder.head.weight"} | stacks | routers
    scales = {n for n, p in model.named_parameters() if p.requires_grad and p.dim() < 2}
    assert named.get("scales", set()) - scales == {
        n for n, p in model.named_parameters() if p.requires_grad and ".normalizer." in n and p.dim() == 2
    }
    assert all("gate." in n or ".norm.down" in n or ".norm.up" in n for n in named.get("gates", ()))


def test_a_learned_key_is_a_scale_as_a_sink_is() -> None:
    named = names_by_group(build("key-value-bias"))
    assert {"decoder.blocks.0.attention.normalizer.key", "decoder.blocks.0.attention.normalizer.value"} <= named[
        "scales"
    ]


def test_a_zero_dimensional_parameter_is_trained() -> None:
    model = CausalLM(11, 12, architecture=SMALL, norm=TemperedNorm, optimization=Optimization(lr=0.1, warmup_steps=0))
    train(model, 2)
    assert model.decoder.blocks[0].attention_norm.norm.temperature != 1  # type: ignore[union-attr, operator]


def test_groups_have_their_own_learning_rate_and_decay() -> None:
    groups = {group["name"]: group for group in parameter_groups(build("gated"), OPTIONS)}
    assert groups["scales"]["lr"] == 5 * OPTIONS.lr
    assert {groups[name]["lr"] for name in ("hidden", "gates", "embeddings")} == {OPTIONS.lr}
    assert (groups["scales"]["weight_decay"], groups["gates"]["weight_decay"]) == (0.1, 0.3)


@pytest.mark.parametrize(("norm", "end"), [(RMSNorm, 0.0), (ZeroCenteredRMSNorm, 1.0)])
def test_decay_pulls_a_gain_to_zero_and_a_zero_centered_one_to_one(norm: Any, end: float) -> None:
    model = CausalLM(11, 12, architecture=SMALL, norm=norm)
    model.configure_model()
    optimizer = AdamW(parameter_groups(model, Optimization(lr=1.0, scale_weight_decay=0.5)))
    norms = [m for m in model.modules() if type(m) is norm]
    for each in norms[:4]:
        each.weight.data.fill_(3.0)
        each.weight.grad = torch.zeros_like(each.weight)
    optimizer.step()
    assert len(norms) >= 4
    for each in norms[:4]:
        gain = each.gain(torch.zeros(16))
        assert torch.equal(gain, torch.full((16,), end + 1.5))


def test_an_unknown_no_decay_name_is_rejected_at_construction() -> None:
    class Misspelled(TemperedNorm):
        no_decay = ("temprature",)

    with pytest.raises(
        UserError, match=r"Misspelled.no_decay has 'temprature', but its parameters are weight, temperature"
    ):
        CausalLM(11, 12, architecture=SMALL, norm=Misspelled)


def test_an_optimizer_without_some_parameters_is_rejected() -> None:
    groups = parameter_groups(build("baseline"), OPTIONS)
    check_coverage(AdamW(groups), groups)
    with pytest.raises(UserError, match="ForgetfulAdamW updates 14 of the model's 19 parameters"):
        check_coverage(ForgetfulAdamW(groups), groups)


def train(model: CausalLM, steps: int, callback: lightning.Callback | None = None) -> lightning.Trainer:
    rows = torch.randint(0, 11, (4 * steps, 13), generator=torch.Generator().manual_seed(1))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, gradient_clip_val=1.0,
        callbacks=[callback] if callback else [],
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=4))  # type: ignore[arg-type]
    return trainer


def test_wsd_is_constant_and_falls_in_a_straight_line_over_the_last_steps() -> None:
    options = Optimization(schedule="wsd", warmup_steps=2, decay_fraction=0.4, final_lr_ratio=0.0)
    assert [options.factor(step, 10) for step in range(11)] == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    )
    assert Optimization(schedule="wsd", warmup_steps=2, final_lr_ratio=0.5).factor(9, 10) == pytest.approx(0.75)
    with pytest.raises(UserError, match=r"optimization.decay_fraction is 0"):
        Optimization(decay_fraction=0.0)


@pytest.mark.parametrize("gates", ["adamw", "muon"])
def test_muon_adamw_equals_separate_optimizers(gates: Any) -> None:
    together, apart = build("gated"), build("gated")
    apart.load_state_dict(together.state_dict())
    composite = MuonAdamW(parameter_groups(together, OPTIONS), gates=gates)
    groups = {g["name"]: g for g in parameter_groups(apart, OPTIONS)}
    matrices = [groups.pop("hidden"), *([groups.pop("gates")] if gates == "muon" else [])]
    muon = torch.optim.Muon(
        [{k: v for k, v in g.items() if k not in ("betas", "eps")} for g in matrices], adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(list(groups.values()), fused=True)
    rows = torch.randint(0, 11, (3, 4, 13), generator=torch.Generator().manual_seed(2))
    for step, batch in enumerate(rows):
        for model, optimizers in ((together, [composite]), (apart, [muon, adamw])):
            model.loss(batch).backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
        if step == 1:  # states travel through a checkpoint
            again = MuonAdamW(parameter_groups(together, OPTIONS), gates=gates)
            again.load_state_dict(composite.state_dict())
            composite = again
    for (name, p), other in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(p, other), name


OPTIMIZERS: dict[str, Any] = {
    "adamw": AdamW,
    "plain adamw": partial(torch.optim.AdamW, fused=False),
    "muon": MuonAdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_stay_from_the_first_gradient_on_that_is_not_finite(name: str) -> None:
    before: dict[str, torch.Tensor] = {}

    class Poison(lightning.Callback):
        """Makes the gradients of the third step NaN, and keeps the weights before it."""

        def on_after_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
            if trainer.global_step == 2:
                before.update({n: p.detach().clone() for n, p in module.named_parameters()})
                next(module.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]

    options = Optimization(warmup_steps=0, weight_decay=0.5)
    model = CausalLM(11, 12, architecture=SMALL, optimizer=OPTIMIZERS[name], optimization=options)
    train(model, 2)
    trained = {n: p.detach().clone() for n, p in model.named_parameters()}
    model = CausalLM(11, 12, architecture=SMALL, optimizer=OPTIMIZERS[name], optimization=options)
    train(model, 5, Poison())
    assert int(model.first_nonfinite_step) == 3
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == set()
    assert trained.keys() == before.keys()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_guard_that_is_not_armed_changes_nothing() -> None:
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in layers]
    guard = SkipGuard(optimizers[0])
    for layer, optimizer in zip(layers, optimizers, strict=True):
        layer(torch.ones(1, 3)).sum().backward()
        if optimizer is optimizers[0]:
            guard.arm(torch.tensor(False))
        optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_muon_rejects_sharded_parameters_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sinks.checks import check
    from sinks.checks.check import SHARDED

    (line,) = check(lambda: CausalLM(11, 12, architecture=SMALL, optimizer=MuonAdamW), [SHARDED])
    assert line.result == "not tried"
    assert "MuonAdamW needs unsharded matrices, but the strategy shards them: use ddp, or AdamW" in line.reason
