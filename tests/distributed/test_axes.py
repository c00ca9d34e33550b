"""Every axis: one process, DDP, FSDP2 and tensor parallelism train the same run of six steps, with its statistics."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from sinks.cli import run
from sinks.record import RunFolder
from tests.cli.small import weights
from tests.distributed.axes import AXES, EVERY, KIND, strategies
from tests.distributed.launch import arguments_of
from tests.distributed.test_strategies import HEADS, assert_same
from tests.faults.processes import start_ranks

SAMPLE = sorted(random.Random(0).sample(sorted(EVERY), 3))
SIX = ("--trainer.gradient_clip_val=0.02", "--trainer.log_every_n_steps=1")
# Muon orthogonalizes in bfloat16, where one rounding is .004 of an entry.
TOLERANCES = {name: 1e-3 if "muon" in name else 1e-5 for name in EVERY}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with an axis's runs on two processes, which train all axes of a group one after another."""

    @cache
    def of_group(group: str) -> Path:
        folder = tmp_path_factory.mktemp("axes")
        names = SAMPLE if group == "sample" else [name for name in AXES[group] if name not in SAMPLE]
        commands = [arguments(folder, name, strategy) for name in names for strategy in strategies(name)]
        ranks = start_ranks(commands[-1], folder / "log", before=commands[:-1])
        assert [rank.wait(540.0) for rank in ranks] == [0, 0], [rank.output for rank in ranks]
        return folder

    return lambda name: of_group("sample" if name in SAMPLE else KIND[name])


def arguments(folder: Path, name: str, strategy: str) -> list[str]:
    variant, more = EVERY[name]
    return arguments_of(folder / name / strategy, strategy, *HEADS, *SIX, *more, variant=variant)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SAMPLE else [pytest.mark.slow]) for n in EVERY])
def test_every_strategy_trains_the_same_run(name: str, runs: Callable[[str], Path]) -> None:
    folder = runs(name)
    assert run(arguments(folder, name, "one")) == 0
    one = RunFolder(folder / name / "one")
    assert (one.series("train/gradient_norm")[1] > 0.02).all()  # so that every step's gradient was clipped
    for strategy in strategies(name):
        found = RunFolder(folder / name / strategy)
        assert_same(found, one, TOLERANCES[name])
        assert weights(found).keys() == weights(one).keys()
