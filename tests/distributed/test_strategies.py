"""The same run, whatever the strategy: losses, clipped gradients, weights and statistics of eight steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sinks.record import RunFolder
from tests.cli.small import VARIANTS, weights
from tests.distributed.launch import STRATEGIES, run

HEADS = (
    *("--model.architecture.n_heads=4", "--model.architecture.n_kv_heads=2"),
    *("--model.architecture.bias=true", "--model.architecture.qk_norm=true"),
)
EIGHT = ("--trainer.max_steps=8", "--trainer.gradient_clip_val=0.3", "--trainer.log_every_n_steps=1")
TOLERANCE = 1e-5
SPREAD = [name for name in STRATEGIES if name != "one"]


def whole(folder: Path, strategy: str, *more: str, variant: str = "gated-both") -> RunFolder:
    return run(folder, strategy, *HEADS, *EIGHT, *more, variant=variant)


def assert_same(found: RunFolder, expected: RunFolder, tolerance: float = TOLERANCE) -> None:
    for key in ("train/loss", "train/gradient_norm", "validation/loss"):
        steps, values = expected.series(key)
        assert len(steps) >= 2
        assert found.series(key)[0].tolist() == steps.tolist()
        np.testing.assert_allclose(found.series(key)[1], values, rtol=tolerance, err_msg=key)
    for stage in ("train", "validation"):
        ours, theirs = found.statistics(stage), expected.statistics(stage)
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in theirs.arrays.items():
            # A spread is as exact as the mean that it is taken around.
            around = theirs.arrays.get(name.removesuffix("_std") + "_mean", array)
            scale = max(np.nanmax(np.abs(values), initial=1e-30) for values in (array, around))
            if name.endswith("_correlation"):
                scale = 1.0  # near zero it is as exact as at its largest
            np.testing.assert_allclose(
                ours.arrays[name], array, rtol=tolerance, atol=tolerance * scale, err_msg=f"{stage} {name}"
            )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return whole(tmp_path_factory.mktemp("one"), "one", "--model.norm_rank=4")


@pytest.mark.parametrize("strategy", SPREAD)
def test_every_strategy_trains_the_same_run(strategy: str, one: RunFolder, tmp_path: Path) -> None:
    found = whole(tmp_path, strategy, "--model.norm_rank=4")
    assert (one.series("train/gradient_norm")[1] > 0.3).all()  # so that every step's gradient was clipped
    assert_same(found, one)
    assert weights(found).keys() == weights(one).keys()


# DyT's small output makes the key biases' gradients rounding alone, which Adam turns into full-sized steps.
WITHOUT_BIAS = {"gate-dyt"}


# Muon rejects sharded parameters, in tests/families/test_optimizers.py.
SHARDED = [name for name in VARIANTS if "muon" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("variant", SHARDED)
def test_every_variant_trains_the_same_run_sharded_and_split(variant: str, tmp_path: Path) -> None:
    more = ["--model.architecture.bias=false"] if variant in WITHOUT_BIAS else []
    assert_same(
        whole(tmp_path / "split", "fsdp2 x tensor-parallel", *more, variant=variant),
        whole(tmp_path / "one", "one", *more, variant=variant),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "tolerance"),
    [
        ("outlier-penalty", TOLERANCE),
        ("power-penalty", TOLERANCE),
        ("gated-both-muon-gates", 1e-4),
    ],  # Muon orthogonalizes in bfloat16
)
def test_an_objective_and_an_optimizer_train_the_same_run_under_ddp(
    variant: str, tolerance: float, tmp_path: Path
) -> None:
    ddp, one = (whole(tmp_path / strategy, strategy, variant=variant) for strategy in ("ddp", "one"))
    assert_same(ddp, one, tolerance)


@pytest.mark.slow
def test_experts_and_windows_train_the_same_run_sharded_and_split(tmp_path: Path) -> None:
    experts = "{class_path: sinks.models.experts.Experts, init_args: {experts: 4, chosen: 2}}"
    more = [f"--model.feed_forward={experts}", "--model.architecture.layer_pattern=[{window: 4}, {rope: false}]"]
    split = whole(tmp_path / "split", "fsdp2 x tensor-parallel", *more, variant="learnable-sink")
    assert_same(split, whole(tmp_path / "one", "one", *more, variant="learnable-sink"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2 x tensor-parallel"])
@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ("--model.execution.compile=true", TOLERANCE),
        ("--model.execution.activation_checkpointing=true", TOLERANCE),
        ("--trainer.precision=bf16-true", 1e-2),
    ],
)
def test_every_way_to_run_a_block_trains_the_same_run(
    option: str, tolerance: float, strategy: str, tmp_path: Path
) -> None:
    one, found = (whole(tmp_path / name, name, "--model.norm_rank=4", option) for name in ("one", strategy))
    for key in ("train/loss", "train/gradient_norm", "validation/loss"):
        np.testing.assert_allclose(found.series(key)[1], one.series(key)[1], rtol=tolerance, err_msg=key)


@pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=pytest.mark.slow if name == "hsdp" else ()) for name in SPREAD[1:]]
)
def test_sharded_initialization_is_that_of_one_process_bit_for_bit(strategy: str, tmp_path: Path) -> None:
    still = ("--model.architecture.tied_embeddings=true", "--model.optimization.lr=1e-300", "--trainer.max_steps=1")
    initial = [run(tmp_path / name, name, *HEADS, *still) for name in ("one", strategy)]
    for name, value in weights(initial[0]).items():
        assert torch.equal(value, weights(initial[1])[name]), name
