"""New parts in a trained model: it computes what it did, trains on, resumes, and minimizes what its objective says."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sinks.checks import check
from sinks.cli import main
from sinks.data.backcopy import Backcopy
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.families.objectives import Distillation, NextToken, Objective, OutlierPenalty, PowerPenalty, divergence
from sinks.families.start_from import start
from sinks.families.stored import stored_model
from sinks.models.attention_gates import ElementwiseGate, HeadwiseGate, IdentityElementwiseGate, IdentityHeadwiseGate
from sinks.models.decoder import Architecture
from sinks.models.exclusion import LearnedExclusion
from sinks.models.execution import Execution
from sinks.models.gated_norm import GatedNorm, IdentityGatedNorm
from sinks.models.key_gates import GatedKeys
from sinks.models.normalizers import LearnableSink
from sinks.models.norms import PreAffine, RMSNorm
from sinks.models.taps import taps_of
from sinks.observe import Reader, sites_of
from sinks.record import RunFolder
from sinks.runs import load_run, train
from tests.checkpoints.test_checkpoints import interrupted
from tests.cli.small import without_clocks

SMALL = Architecture(
    d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_hidden=24, init_std=0.3, tied_embeddings=True
)
OPTIONS: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "precision": "32-true", "val_check_interval": 10, "log_every_n_steps": 1,
}  # fmt: skip
SECTIONS = {
    "statistics": {"interval": 10}, "progress": {"enabled": False}, "notes": {"enabled": False},
    "checkpoints": {"interval": 10, "keep": 3},
}  # fmt: skip
EPS = 1e-3
IDENTITIES: dict[str, dict[str, Any]] = {
    "gated-norm": {"norm": partial(IdentityGatedNorm, rank=3, norm=partial(RMSNorm, eps=EPS))},
    "gate-per-token": {
        "norm": partial(IdentityGatedNorm, rank=3, granularity="tensorwise", norm=partial(RMSNorm, eps=EPS))
    },
    "headwise": {"attention_gate": IdentityHeadwiseGate},
    "elementwise": {"attention_gate": IdentityElementwiseGate},
    "truncated": {"attention_gate": partial(IdentityHeadwiseGate, dimensions=3)},
    "keys": {"key_gate": GatedKeys},
    "exclusion": {"exclusion": partial(LearnedExclusion, initial=0.0)},
    "pre-affine": {"norm": partial(PreAffine, eps=EPS), "head_norm": partial(PreAffine, eps=EPS)},
    "all": {
        "norm": partial(IdentityGatedNorm, rank=3, norm=partial(PreAffine, eps=EPS)),
        "attention_gate": IdentityElementwiseGate,
    },
}
ALL = IDENTITIES["all"]
SINK = {"normalizer": partial(LearnableSink, sink_scale=10.0, initial=-5.0)}
NEW = ("down.weight", "up.weight", "gate.projection.weight", "key_gate.projection.weight", "strength", "pre", "sink")


def data() -> Backcopy:
    return Backcopy(context_length=12, batch_size=4, validation_rows=10)


def model(source: Path | None = None, **parts: Any) -> CausalLM:
    norms = {"norm": partial(RMSNorm, eps=EPS), "head_norm": partial(RMSNorm, eps=EPS)}
    start_from = None if source is None else str(source)
    return CausalLM(data().vocab_size, 12, **{"architecture": SMALL, "start_from": start_from} | norms | parts)


def fit(built: CausalLM, folder: Path, steps: int = 20, **options: Any) -> RunFolder:
    assert train(built, data(), folder, max_steps=steps, trainer=OPTIONS | options, sections=SECTIONS) is not None
    return RunFolder(folder)


def started(source: Path, **parts: Any) -> CausalLM:
    """A model with the weights of a run, as before the first step."""
    built = model(source, **parts)
    built.configure_model()
    assert built.decoder is not None
    start(built.decoder, source)
    return built


def rows() -> Tensor:
    return torch.randint(0, data().vocab_size, (3, 13))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, whose weights are no longer those it was initialized with."""
    return fit(model(), tmp_path_factory.mktemp("source"), steps=3).path


# -- the start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", IDENTITIES.values(), ids=IDENTITIES)
def test_the_first_loss_is_the_originals_to_the_bit_and_new_parts_train(parts: dict[str, Any], source: Path) -> None:
    batch, original, new = rows(), stored_model(source)[0], started(source, **parts)
    loss = new.loss(batch)
    assert torch.equal(loss, original.loss(batch))
    loss.backward()
    gradients = {name: p.grad for name, p in new.named_parameters() if name.endswith(NEW)}
    assert gradients
    # Behind an up-projection of zeros nothing reaches the down-projection at the first step.
    assert all(g is not None and g.any() != name.endswith("norm.down.weight") for name, g in gradients.items())


def test_a_run_logs_the_originals_loss_as_its_first(source: Path, tmp_path: Path) -> None:
    """Also where parts that are new to the first run are in the second, which starts from it."""
    control, gated = (fit(model(source, **parts), tmp_path / name, 2) for name, parts in (("a", {}), ("b", ALL)))
    first = [run.series("train/loss")[1][0] for run in (control, gated)]
    assert first[0] == first[1]
    batch = rows()
    assert torch.equal(started(gated.path, **ALL).loss(batch), load_run(gated.path).model.loss(batch))
    assert gated.provenance()["started_from"] == str(RunFolder(source).last_checkpoint.resolve())


def test_a_sink_starts_at_its_logit(source: Path) -> None:
    """At -5 the loss moves, and far below every row's log-sum-exp it is the original's to the bit."""
    batch, original = rows(), stored_model(source)[0].loss
    new = started(source, **SINK)
    assert new.decoder is not None
    assert torch.equal(new.decoder.blocks[0].attention.normalizer.options()["sink"], torch.full((4,), -5.0))
    assert not torch.equal(new.loss(batch), original(batch))
    far = started(source, normalizer=partial(LearnableSink, initial=-1e4))
    assert torch.equal(far.loss(batch), original(batch))


def test_statistics_see_gates_of_one(source: Path) -> None:
    built = started(source, **ALL)
    reader = Reader(sites_of(built))
    with reader.reading(), torch.no_grad():
        built(rows()[:, :-1])
    scalars, _ = reader.summarize()
    assert scalars["attention/gate_mean"] == scalars["norm/gate_mean"] == 1


# -- away from the start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["elementwise", "tensorwise"])
def test_the_norms_gate_is_twice_a_sigmoid(granularity: Any) -> None:
    gated = IdentityGatedNorm(16, rank=3, granularity=granularity, norm=partial(PreAffine, eps=EPS)).double()
    for parameter in gated.parameters():
        torch.nn.init.normal_(parameter)
    x, norm = torch.randn(2, 5, 16, dtype=torch.float64), gated.norm
    assert isinstance(norm, PreAffine)
    scaled = norm.pre * x
    y = norm.weight * scaled / (scaled.square().mean(-1, keepdim=True) + EPS).sqrt()
    h = y @ gated.down.weight.T
    expected = y * 2 / (1 + (-(h / (1 + (-h).exp())) @ gated.up.weight.T).exp())
    torch.testing.assert_close(gated(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "plain"), [(IdentityHeadwiseGate, HeadwiseGate), (IdentityElementwiseGate, ElementwiseGate)]
)
def test_an_attention_gate_is_twice_the_plain_one(ours: Any, plain: Any) -> None:
    """A factor of two is exact in binary floating point, so that it may be in the output projection as well."""
    one, two = model(attention_gate=ours), model(attention_gate=plain)
    for each in (one, two):
        each.configure_model()
    state = {k: torch.randn_like(v) if "gate.projection" in k else v for k, v in one.state_dict().items()}
    one.load_state_dict(state)
    two.load_state_dict({k: 2 * v if k.endswith("attention.out.weight") else v for k, v in state.items()})
    batch = rows()
    assert torch.equal(one(batch[:, :-1]), two(batch[:, :-1]))
    means = []
    for each in (one, two):
        reader = Reader(sites_of(each))
        with reader.reading(), torch.no_grad():
            each(batch[:, :-1])
        means.append(reader.summarize()[0]["attention/gate_mean"])
    assert means[0] == pytest.approx(2 * means[1], rel=1e-6)


@pytest.mark.parametrize("parts", [ALL, IDENTITIES["headwise"] | SINK], ids=["all", "headwise-sink"])
def test_the_properties_of_every_variant_hold(parts: dict[str, Any]) -> None:
    failed = [str(line) for line in check(lambda: model(**parts)) if line.result == "failed"]
    assert not failed, failed


# -- resuming ---------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "control": {},
    "gated-norm": IDENTITIES["gated-norm"],
    "headwise": IDENTITIES["headwise"],
    "elementwise": IDENTITIES["elementwise"],
    "pre-affine": IDENTITIES["pre-affine"],
    "sink": SINK,
    "all-distilled": ALL | {"objective": partial(OutlierPenalty, weight=1e-3, objective=Distillation)},
}


@pytest.mark.parametrize(
    "parts",
    [pytest.param(p, id=kind, marks=[] if kind == "sink" else pytest.mark.slow) for kind, p in KINDS.items()],
)
def test_it_resumes_bit_for_bit(parts: dict[str, Any], source: Path, tmp_path: Path) -> None:
    whole = fit(model(source, **parts), tmp_path / "whole")
    resumed = fit(model(source, **parts), interrupted(whole, tmp_path / "resumed", step=10))
    assert without_clocks(resumed.metrics()) == without_clocks(whole.metrics())
    ours, theirs = (load_run(run.path).model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


def test_a_checkpoint_wins_over_the_start_which_may_then_be_gone(source: Path, tmp_path: Path) -> None:
    gone = tmp_path / "source"
    whole = fit(model(), gone, steps=1)
    run = fit(model(gone), tmp_path / "run")
    folder = interrupted(run, tmp_path / "resumed", step=10)
    whole.path.rename(tmp_path / "elsewhere")
    assert without_clocks(fit(model(gone), folder).metrics()) == without_clocks(run.metrics())


def test_a_sharded_model_starts_the_same(source: Path, tmp_path: Path) -> None:
    from sinks.parallel.strategy import Sharded

    whole = fit(model(source, **ALL), tmp_path / "whole", steps=1)
    sharded = fit(model(source, **ALL), tmp_path / "sharded", steps=1, strategy=Sharded())
    first = [run.series("train/loss")[1][0] for run in (whole, sharded)]
    assert first[1] == pytest.approx(first[0], rel=1e-6)


# -- objectives -------------------------------------------------------------------------------------------------


def losses(source: Path, objective: Objective, **parts: Any) -> tuple[CausalLM, CausalLM, Tensor, Tensor]:
    """The original, another model, rows, and the objective's value of them, in float64."""
    batch, original = rows(), stored_model(source)[0].double()
    new = model(source, **ALL | parts)
    new.configure_model()
    new.double()
    objective.prepare(new)
    for part in (objective, getattr(objective, "objective", None)):
        if isinstance(part, Distillation):
            assert part.original is not None
            part.original.double()
    return original, new, batch, objective.loss(new, batch)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_distillation_is_the_divergence_from_the_original(weight: float, source: Path) -> None:
    objective = Distillation(weight)
    original, new, batch, found = losses(source, objective)
    p, q = (torch.softmax(each(batch[:, :-1]), -1) for each in (original, new))
    divergences = (p * (p.log() - q.log())).sum(-1).mean()
    targets = -q.gather(-1, batch[:, 1:, None]).log().mean()
    expected = (1 - weight) * targets + weight * divergences
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    names = list(dict(new.named_parameters()))
    gradients = [torch.autograd.grad(loss, list(new.parameters()), retain_graph=True) for loss in (found, expected)]
    for name, one, two in zip(names, *gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12, msg=name)
    assert objective.original is not None
    assert not any(p.requires_grad for p in objective.original.parameters())
    assert not any("original" in name for name in new.state_dict())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_penalty_is_on_each_rows_largest_value_at_each_norm(checkpointed: bool, source: Path) -> None:
    execution = Execution(activation_checkpointing=checkpointed)
    _, new, batch, found = losses(source, OutlierPenalty(weight=0.5), execution=execution)
    seen: dict[str, Tensor] = {}
    inputs = [tap for tap in taps_of(new) if tap.site.endswith("norm.input")]
    assert len(inputs) == 2 * SMALL.n_layers + 1
    for tap in inputs:
        tap.edit = lambda h, site=tap.site: seen.setdefault(site, h)
    plain = new.loss(batch)
    for tap in inputs:
        tap.edit = None
    largest = [h[row].abs().max() for h in seen.values() for row in range(len(batch))]
    expected = plain + 0.5 * torch.stack(largest).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, list(new.parameters())) for loss in (found, expected)]
    assert all(torch.allclose(one, two, rtol=1e-9, atol=1e-12) for one, two in zip(*gradients, strict=True))


def test_the_penalty_of_a_batch_is_the_mean_of_its_parts() -> None:
    """As micro-batches are accumulated, and as processes are averaged."""
    built, objective, batch = model(), OutlierPenalty(0.5), rows()
    built.configure_model()
    built.double()
    parameters = list(built.parameters())
    whole = objective.loss(built, batch)
    parts = torch.stack([objective.loss(built, row[None]) for row in batch]).mean()
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, parameters) for loss in (whole, parts)]
    assert all(torch.allclose(one, two, rtol=1e-9, atol=1e-12) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_power_penalty_is_on_every_value_of_the_blocks_outputs(checkpointed: bool) -> None:
    """Value and gradients of TWEO's formula, and the two terms apart."""
    built, batch = model(execution=Execution(activation_checkpointing=checkpointed)), rows()
    built.configure_model()
    built.double()
    objective = PowerPenalty(weight=0.3, scale=2.0, power=3.0)
    seen: list[Tensor] = []
    outputs = [tap for tap in taps_of(built) if tap.site.endswith("residual.out")]
    assert len(outputs) == SMALL.n_layers
    for tap in outputs:
        tap.edit = lambda h: seen.append(h) or h  # type: ignore[func-returns-value]
    plain = built.loss(batch)
    for tap in outputs:
        tap.edit = None
    expected = plain + 0.3 * sum((h.abs() / 2).pow(3).sum() / h.numel() for h in seen) / len(seen)
    found, (task, auxiliary) = objective.loss(built, batch), objective.terms(built, batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert auxiliary is not None
    torch.testing.assert_close(task, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(task + auxiliary, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, list(built.parameters())) for loss in (found, expected)]
    assert all(torch.allclose(one, two, rtol=1e-9, atol=1e-12) for one, two in zip(*gradients, strict=True))


def test_auxiliary_losses_add_up_apart_from_the_task() -> None:
    built, batch = model(), rows()
    built.configure_model()
    both = OutlierPenalty(0.5, partial(PowerPenalty, 0.3)).terms(built, batch)
    single = [OutlierPenalty(0.5).terms(built, batch), PowerPenalty(0.3).terms(built, batch)]
    assert both[0] == single[0][0] == single[1][0] == built.loss(batch)
    torch.testing.assert_close(both[1], single[0][1] + single[1][1])  # type: ignore[operator]
    assert NextToken().terms(built, batch)[1] is None


@pytest.mark.parametrize("objective", ["NextToken", "PowerPenalty"])
def test_train_loss_is_that_of_the_task(objective: str, tmp_path: Path) -> None:
    """Of two steps in two micro-batches each; the penalty is logged apart, and what is minimized is their sum."""
    data = ["--data=Backcopy", "--data.context_length=12", "--data.batch_size=2", "--data.validation_rows=2"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1", "--progress.enabled=false"]
    penalty = {"class_path": objective} | ({"init_args": {"weight": 50.0}} if objective == "PowerPenalty" else {})
    options = [f"--model.objective={json.dumps(penalty)}", "--trainer.accumulate_grad_batches=2", "--seed_everything=0"]
    more = ["--trainer.log_every_n_steps=1", "--model.architecture.n_layers=1", "--model.architecture.d_model=16"]
    command = ["fit", "--model=CausalLM", *data, *trainer, *options, *more, "--run.dir", str(tmp_path)]
    assert main(command) == 0
    summary = RunFolder(tmp_path).summary()
    assert summary["train_loss"] == pytest.approx(math.log(load_run(str(tmp_path)).model.vocab_size), abs=0.3)
    assert ("train_auxiliary_loss" in summary) == (objective == "PowerPenalty")
    if objective == "PowerPenalty":
        assert summary["train_auxiliary_loss"] > 0
        assert RunFolder(tmp_path).series("train/auxiliary_loss")[1][-1] == summary["train_auxiliary_loss"]


def test_the_penalty_leaves_output_norms_out() -> None:
    """A sublayer before its output norm may be of any size: the penalty stays what it was."""
    built, batch = model(output_norm=partial(RMSNorm, eps=0.0)), rows()
    built.configure_model()
    built.double()
    found = []
    for _ in range(2):
        found.append(OutlierPenalty(0.5).loss(built, batch))
        with torch.no_grad():
            for block in built.decoder.blocks:  # type: ignore[union-attr]
                block.attention.out.weight.mul_(100.0)
    torch.testing.assert_close(*found, rtol=1e-10, atol=0)


def test_the_penalty_adds_to_any_objective(source: Path) -> None:
    torch.manual_seed(1)
    both = losses(source, OutlierPenalty(0.5, partial(Distillation, 0.3)))[3]
    torch.manual_seed(1)
    penalty = losses(source, OutlierPenalty(0.5))[3]
    torch.manual_seed(1)
    targets = losses(source, NextToken())[3]
    torch.manual_seed(1)
    distilled = losses(source, Distillation(0.3))[3]
    torch.testing.assert_close(both - distilled, penalty - targets, rtol=1e-10, atol=1e-12)


def test_half_precision_diverges_by_rounding_only() -> None:
    p, q = torch.randn(2, 5, 7).bfloat16()
    assert divergence(p, p) == 0
    expected = divergence(p.double(), q.double()).float()
    torch.testing.assert_close(divergence(p, q), expected, rtol=1e-5, atol=0)


# -- mistakes ---------------------------------------------------------------------------------------------------


def test_a_start_that_does_not_fit_gets_one_line_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").touch()
    (tmp_path / "empty").mkdir()
    norm = IDENTITIES["gated-norm"]
    gated = fit(model(source, **norm, attention_gate=IdentityHeadwiseGate), tmp_path / "gated", steps=1).path
    wrong: dict[str, CausalLM] = {
        "is no folder: give a run folder": model(tmp_path / "nowhere"),
        "run sinks import on it": model(tmp_path / "hub"),
        "has no complete checkpoint|holds no run": model(tmp_path / "empty"),
        "down.weight is (3, 16), but absent": model(source, norm=partial(GatedNorm, rank=3)),
        "gate.projection.weight is (4, 16), but absent": model(source, attention_gate=HeadwiseGate),
        "is (16,), but absent": model(source, architecture=replace(SMALL, n_layers=3)),
        f"gate.projection.weight in {gated} has no place": model(gated, **norm),
        "but (3, 16)": model(gated, norm=partial(IdentityGatedNorm, rank=4)),
    }
    for words, built in wrong.items():
        with pytest.raises(UserError) as caught:
            built.check_start()
        line = str(caught.value)
        assert any(word in line for word in words.split("|")), (words, line)
        assert "\n" not in line
    with pytest.raises(UserError, match="no folder"):
        fit(model(tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_distillation_without_an_original_and_weights_out_of_range_are_rejected() -> None:
    for objective in (Distillation, partial(OutlierPenalty, objective=Distillation)):
        with pytest.raises(UserError, match=r"give its run folder as model\.start_from"):
            model(objective=objective)
    for make in (
        lambda: Distillation(0.0),
        lambda: Distillation(1.5),
        lambda: OutlierPenalty(0.0),
        lambda: PowerPenalty(0.0),
    ):
        with pytest.raises(UserError, match="weight is"):
            make()


def test_the_command_line_takes_all_of_it(source: Path, tmp_path: Path) -> None:
    arguments = [
        *("fit", "-c", str(source / "config.yaml"), "--run.dir", str(tmp_path), "--trainer.max_steps=1"),
        *(f"--model.start_from={source}", "--model.objective=OutlierPenalty", "--progress.enabled=false"),
        *("--model.objective.init_args.objective=Distillation", "--model.attention_gate=IdentityHeadwiseGate"),
    ]
    assert main(arguments) == 0
    run = load_run(tmp_path)
    assert isinstance(run.model.objective, OutlierPenalty)
    assert isinstance(run.model.objective.objective, Distillation)
