"""What `sinks check` finds: no failure in what the suite ships, and each injected fault, by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sinks.checks import PROPERTIES, check
from sinks.checks.check import NAMES, SHARDED
from sinks.cli import main
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.families.optimizers import MuonAdamW
from tests.checks import user_parts as user
from tests.cli.small import NEEDS_THRESHOLD
from tests.cli.small import VARIANTS as FILES
from tests.families.variants import ARCHITECTURES, FEED_FORWARDS, SMALL, VARIANTS

ROOT = Path(__file__).parents[2]


def failures(make: Callable[[], CausalLM], *names: str) -> dict[str, str]:
    """Reasons by property of those that failed."""
    return {line.name: line.reason for line in check(make, names or NAMES) if line.result == "failed"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_every_property(name: str) -> None:
    family, options = VARIANTS[name]
    assert failures(lambda: family(11, 12, **{"architecture": SMALL} | options)) == {}


def test_a_seed_that_was_set_before_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's strategies seed again with that of an earlier `seed_everything`, e.g. in a notebook."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    family, options = VARIANTS["baseline"]
    assert failures(lambda: family(11, 12, **{"architecture": SMALL} | options), SHARDED) == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_and_feed_forward_has_every_property(architecture: str) -> None:
    options: dict[str, Any] = ARCHITECTURES[architecture]
    shape = SMALL.__class__(**SMALL.__dict__ | options)
    feed_forward = list(FEED_FORWARDS.values())[list(ARCHITECTURES).index(architecture) % 3]
    make = lambda: CausalLM(11, 12, architecture=shape, feed_forward=feed_forward)  # noqa: E731
    assert failures(make, *PROPERTIES) == {}


RIGHT: dict[str, dict[str, Any]] = {
    "rectified": {"normalizer": user.Rectified},
    "squashed": {"norm": user.SquashedNorm, "head_norm": user.SquashedNorm},
    "doubled gate": {"norm": user.DoubledGate},
    "silent attention": {"mixer": user.RunningMean},
    "muon": {"optimizer": partial(MuonAdamW, gates="muon"), "norm": user.DoubledGate},
    "sgd": {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_users_write_has_every_property(name: str) -> None:
    assert failures(lambda: user.small(**RIGHT[name])) == {}


# Fault: the options, and every property that fails with part of the reason.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "leaks the future": ({"mixer": user.LeakingMean}, {"causal": "changed from there on", "prefix": "alone give"}),
    "a prefix alone differs": ({"mixer": user.LengthScaled}, {"prefix": "alone give"}),
    "ignores a parameter": ({"norm": user.IdleNorm}, {"every parameter learns": "attention_norm.norm.unused"}),
    "a norm of another formula": (
        {"norm": user.MisreportingNorm},
        {"norms are as reported": "calls normalized"},
    ),
    "a sink that is not declared": ({"normalizer": user.UncountedSink}, {"attention is as reported": "entropy"}),
    "not safe on the meta device": ({"norm": user.EagerNorm}, {"meta initialization": "norm.bias", SHARDED: ""}),
    "not saved": ({"norm": user.UnsavedNorm}, {"save and load": "some state is not saved", "first steps": ""}),
    "no dimension": (
        {"norm": user.TemperedNorm},
        {"every parameter in one group": "norm.temperature is zero-dimensional", SHARDED: "scalar parameters"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_injected_fault_is_named(name: str) -> None:
    options, expected = FAULTS[name]
    found = failures(lambda: user.small(**options))
    assert found.keys() == expected.keys()
    for broken, word in expected.items():
        assert word in found[broken]


def test_nan_at_the_first_step_is_named() -> None:
    found = failures(lambda: user.small(attention_gate=user.ExplodingGate))
    assert "step 1 is not finite" in found["first steps"]


def test_an_optimizer_that_leaves_parameters_out_is_rejected_at_construction() -> None:
    with pytest.raises(UserError, match=r"ForgetfulAdamW updates \d+ of the model's \d+ parameters: let it take every"):
        user.small(optimizer=user.ForgetfulAdamW)


def test_overriding_attend_is_rejected_at_construction() -> None:
    with pytest.raises(UserError, match=r"SoftmaxBehindOptions overrides Normalizer.attend"):
        user.small(normalizer=user.SoftmaxBehindOptions)


def test_a_mixer_with_attention_options_is_rejected() -> None:
    with pytest.raises(UserError, match=r"model.normalizer Rectified would have no effect"):
        user.small(mixer=user.RunningMean, normalizer=user.Rectified)


def test_not_tried_is_reported() -> None:
    lines = {line.name: line for line in check(lambda: user.small(mixer=user.RunningMean))}
    assert lines["maps give the output"].result == "not tried"
    assert "no layer has attention weights" in str(lines["maps give the output"])


@pytest.mark.parametrize("variant", [FILES[0], "clip-residual"])
def test_the_command_prints_one_line_per_property(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = f"{ROOT}/experiments/variants/{variant}.yaml"
    more = ["--model.residual_threshold=0.7"] if variant in NEEDS_THRESHOLD else []
    assert main(["check", file, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(NAMES)} passed, 0 failed, 0 not tried"
    assert [line.removeprefix("passed").strip() for line in lines[:-1]] == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("variant", FILES)
def test_every_shipped_file_passes(variant: str) -> None:
    more = ["--model.residual_threshold=0.7"] if variant in NEEDS_THRESHOLD else []
    assert main(["check", f"{ROOT}/experiments/variants/{variant}.yaml", *more]) == 0


def test_the_command_exits_with_1_where_a_property_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "variant.yaml"
    file.write_text("model:\n  class_path: CausalLM\n  init_args: {mixer: tests.checks.user_parts.LeakingMean}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(file)])
    assert stopped.value.code == 1
    assert "failed     causal: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is to be checked is missing"),
        (["nowhere.yaml"], "there is no configuration file nowhere.yaml"),
        ([f"{ROOT}/experiments/variants/clip-residual.yaml"], "residual clipping has no threshold"),
        ([f"{ROOT}/experiments/variants/baseline.yaml", "--model.rank=3"], "rank"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["check", *arguments])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
