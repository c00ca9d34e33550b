"""SIGKILL of runs whose axes carry state from step to step: resumed, they end as if never killed, bit for bit."""

from pathlib import Path

import pytest

from sinks.record import RunFolder
from tests.cli.small import small
from tests.distributed.axes import AVERAGE
from tests.faults.processes import callbacks, start, start_ranks
from tests.faults.test_kills import assert_same

EXPONENTIAL = AVERAGE % ("ExponentialAverage", "decay: 0.7")
MEAN = AVERAGE % ("MeanOfLast", "fraction: 0.8")
WSD = ["--model.optimization.schedule=wsd", "--model.optimization.decay_fraction=0.5"]
MUON = "--model.optimizer=MuonAdamW"
SHARDED = ["--trainer.strategy=sinks.parallel.strategy.Sharded", "--trainer.strategy.replicas=1"]
HYBRID = ["--model.mixer=GatedDeltaNet", "--model.mixer_pattern=[mixer, attention]"]
# A variant's file, and more arguments.
STATEFUL: dict[str, tuple[str, list[str]]] = {
    "all": ("moe", [*HYBRID, MUON, MEAN, *WSD]),
    "exponential average": ("baseline", [EXPONENTIAL]),
    "mean of the last steps": ("baseline", [MEAN, *WSD]),
    "muon": ("muon", []),
    "muon, gates too": ("gated-both-muon-gates", [EXPONENTIAL]),
    "load balance": ("moe", []),
    "gated delta net": ("linear", []),
    "hybrid": ("hybrid-gated", []),
    "outlier penalty": ("outlier-penalty", []),
}


def arguments(folder: Path, variant: str, *more: str) -> list[str]:
    return ["fit", *small(variant), "--trainer.precision=32-true", *more, "--run.dir", str(folder)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "all" else [pytest.mark.slow]) for n in STATEFUL])
def test_a_killed_run_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    variant, more = STATEFUL[name]
    whole, interrupted = (tmp_path / kind for kind in ("whole", "interrupted"))
    sittings = ((whole, [], 0), (interrupted, [("Kill", {"step": 5})], -9), (interrupted, [], 0))
    for i, (folder, faults, code) in enumerate(sittings):
        command = start([*arguments(folder, variant, *more), *callbacks(folder, *faults)], tmp_path / f"log{i}")
        assert command.wait() == code, command.output
    assert_same(RunFolder(interrupted), RunFolder(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "optimizer"), [(["--trainer.strategy=ddp"], [MUON]), (SHARDED, [])], ids=["ddp", "fsdp2"]
)
def test_killed_processes_resume_bit_for_bit(strategy: list[str], optimizer: list[str], tmp_path: Path) -> None:
    whole, interrupted = (tmp_path / kind for kind in ("whole", "interrupted"))
    two = [*strategy, "--trainer.devices=2", "--data.batch_size=2"]
    sittings = ((whole, [], True), (interrupted, [("Kill", {"step": 5})], False), (interrupted, [], True))
    for i, (folder, faults, ends) in enumerate(sittings):
        command = [*arguments(folder, "moe", *HYBRID, *optimizer, MEAN, *WSD, *two), *callbacks(folder, *faults)]
        ranks = start_ranks(command, tmp_path / f"log{i}")
        assert [rank.wait() == 0 for rank in ranks] == [ends, ends], [rank.output for rank in ranks]
    assert_same(RunFolder(interrupted), RunFolder(whole))
