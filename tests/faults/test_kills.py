"""SIGKILL at random instants: started again, a run ends as if it had never been killed, bit for bit.

An instant is a step of the run and a time after it began to step, validate, save or prepare there. Both are drawn from
a seed, which is in the test's name.
"""

import contextlib
import json
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sinks.data.chunks import write_chunks
from sinks.parallel.checkpoint_io import read_checkpoint
from sinks.record import RunFolder
from sinks.record.atomic import PARTIAL
from tests.cli.small import SMALL, THROUGHPUT, without_clocks
from tests.faults.processes import PATIENCE_S, STARTED, Command, start, start_ranks

# Wide enough that a checkpoint takes a while to write. Validations at 3, 6, 9, 12 and 14, checkpoints at 2, 4 ... 14.
WIDE = ["--model.architecture.d_model", "192", "--model.architecture.ffn_hidden", "768"]
LONG = ["--trainer.max_steps", "14", "--checkpoints.interval", "2"]
DROPPING = ["--model.feed_forward", "tests.faults.parts.DroppedGELU"]
SAYING = ["--trainer.callbacks", "tests.faults.phases.Phases", "--trainer.callbacks.seconds", "0.005"]
ARGUMENTS = ["fit", *SMALL, *WIDE, *LONG, *DROPPING, *SAYING]
# Of a summary: clocks, and what depends on where the data lie.
PASSING = (*THROUGHPUT, "wall_s", "config_fingerprint", "variant_fingerprint")

# Phase: steps it is seen at, seconds the instant is drawn from.
PHASES = {
    "step": (range(1, 15), 0.02),
    "validation": ((3, 6, 9, 12, 14), 0.04),
    "checkpoint": (range(2, 15, 2), 0.02),
}


def begin(folder: Path, *more: str) -> Command:
    return start([*ARGUMENTS, "--run.dir", str(folder / "run"), *more], folder / f"log{time.monotonic_ns()}")


def whole(folder: Path, *more: str) -> RunFolder:
    command = begin(folder, *more)
    assert command.wait() == 0, command.output
    return RunFolder(folder / "run")


def kill_in(phase: str, ranks: list[Command], folder: Path, rng: random.Random) -> str:
    """Kill every process of a run that has just been started; where it was."""
    steps, seconds = PHASES[phase]
    instant = f"{phase} {rng.choice(steps)}\n"
    after = rng.random() * seconds
    while instant not in ranks[0].output:
        assert ranks[0].process.is_alive(), f"ended before {instant!r}: {ranks[0].output}"
        time.sleep(0.001)
    time.sleep(after)
    for rank in ranks:
        rank.send(signal.SIGKILL)
    assert [rank.wait() for rank in ranks] == [-signal.SIGKILL] * len(ranks), ranks[0].output
    half = " with a checkpoint half-written" if list(folder.glob(f"run/checkpoints/.*{PARTIAL}")) else ""
    return f"{instant.strip()} + {1000 * after:.1f} ms{half}"


def assert_same(run: RunFolder, other: RunFolder) -> None:
    """Everything that a run leaves, clocks apart, is the same bit for bit, and nothing half-written is left."""
    assert without_clocks(run.metrics()) == without_clocks(other.metrics())
    summaries = [{k: v for k, v in each.summary().items() if k not in PASSING} for each in (run, other)]
    assert summaries[0] == summaries[1]
    for stage in ("train", "validation"):
        ours, theirs = run.statistics(stage), other.statistics(stage)
        assert ours.steps.tolist() == theirs.steps.tolist()
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)
    states = [read_checkpoint(each.last_checkpoint) for each in (run, other)]
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(states[0][part], states[1][part], part)
    assert [path.name for path in run.checkpoints.iterdir()] == [path.name for path in other.checkpoints.iterdir()]
    assert not list(run.path.rglob(f".*{PARTIAL}"))


def assert_equal(ours: object, theirs: object, where: str) -> None:
    """Nested states, tensors bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_equal(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, value in enumerate(ours):
            assert_equal(value, theirs[i], f"{where}.{i}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def seeds(phase: str, count: int) -> list[object]:
    """One kill of a phase for every test run, the others for the long one."""
    return [
        pytest.param(phase, seed, id=f"{phase}-seed{seed}", marks=[pytest.mark.slow] if seed else [])
        for seed in range(count)
    ]


# -- training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return whole(tmp_path_factory.mktemp("never-killed"))


@pytest.mark.parametrize(("phase", "seed"), [*seeds("step", 5), *seeds("validation", 5), *seeds("checkpoint", 5)])
def test_a_killed_run_resumes_bit_for_bit(phase: str, seed: int, never_killed: RunFolder, tmp_path: Path) -> None:
    print(kill_in(phase, [begin(tmp_path)], tmp_path, random.Random(f"{phase} {seed}")))
    assert_same(whole(tmp_path), never_killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_again_and_again_resumes_bit_for_bit(seed: int, never_killed: RunFolder, tmp_path: Path) -> None:
    rng = random.Random(100 + seed)
    for _ in range(3):
        seconds = rng.random() * 0.5
        command = begin(tmp_path)
        # A run that was killed after its last step ends without another.
        while "step " not in command.output and command.process.is_alive():
            time.sleep(0.01)
        time.sleep(seconds)
        command.process.kill()
        print(f"{1000 * seconds:.1f} ms after the first step: exit code {command.wait()}")
    assert_same(whole(tmp_path), never_killed)


# -- two processes that write shards ----------------------------------------------------------------------------


def begin_two(folder: Path) -> list[Command]:
    sharded = ["--trainer.strategy", "sinks.parallel.strategy.Sharded", "--trainer.strategy.replicas", "1"]
    arguments = [*ARGUMENTS, *sharded, "--trainer.devices", "2", "--data.batch_size", "2"]
    return start_ranks([*arguments, "--run.dir", str(folder / "run")], folder / f"log{time.monotonic_ns()}")


def whole_of_two(folder: Path) -> RunFolder:
    ranks = begin_two(folder)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output
    return RunFolder(folder / "run")


@pytest.fixture(scope="module")
def two_never_killed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return whole_of_two(tmp_path_factory.mktemp("two-never-killed"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_two_processes_killed_while_they_write_shards_resume_bit_for_bit(
    seed: int, two_never_killed: RunFolder, tmp_path: Path
) -> None:
    print(kill_in("checkpoint", begin_two(tmp_path), tmp_path, random.Random(seed)))
    assert_same(whole_of_two(tmp_path), two_never_killed)


# -- preparing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 1.5 MB: its preparation takes a few seconds."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
    file = tmp_path_factory.mktemp("text") / "corpus.txt"
    file.write_text("\n\n".join(" ".join(rng.choices(words, k=80)) for _ in range(3000)), encoding="utf-8")
    return file


def on(text: Path, folder: Path) -> list[str]:
    data = ["--data", "Text", "--data.sources", json.dumps([str(text)]), "--data.folder", str(folder / "data")]
    return [*data, "--data.vocab_size", "300"]


@pytest.fixture(scope="module")
def never_killed_on_text(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, float]:
    """The run, and the seconds from the begin of its preparation to its first step."""
    folder = tmp_path_factory.mktemp("never-killed-on-text")
    command = begin(folder, *on(text, folder))
    wait_for_preparation(command, folder)
    begun = time.monotonic()
    command.wait_until_output_matches("step 1\n")
    seconds = time.monotonic() - begun
    assert command.wait() == 0, command.output
    return RunFolder(folder / "run"), seconds


def wait_for_preparation(command: Command, folder: Path) -> None:
    while not list((folder / "data").glob(".corpus*")):
        assert command.process.is_alive(), command.output
        time.sleep(0.001)


def prepare_for(seconds: float, text: Path, folder: Path) -> Command:
    """A run, some time after it began to prepare its data; it may have ended."""
    command = begin(folder, *on(text, folder))
    wait_for_preparation(command, folder)
    command.process.join(seconds)
    return command


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def writers_below(folder: Path) -> list[str]:
    """Processes that hold a file below a folder open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = link.readlink()
        except OSError:
            continue
        if folder in target.parents:
            found.append(f"{link} -> {target}")
    return found


def slow_tokens(number: int) -> np.ndarray:
    time.sleep(60)
    return np.full(8, number, dtype=np.uint16)


def prepare_slowly(folder: Path) -> None:
    write_chunks(slow_tokens, {folder / "train": [0, 1]}, 2, folder / "scratch", lambda done: None)


def test_preparation_ends_with_a_killed_parent_process(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=prepare_slowly, args=(tmp_path,))
    process.start()
    STARTED.append(process)
    wait_until(lambda: len(writers_below(tmp_path)) > 2)
    process.kill()
    wait_until(lambda: not writers_below(tmp_path), seconds=5)


@pytest.mark.parametrize(("phase", "seed"), seeds("preparation", 5))
def test_a_run_killed_while_it_prepares_its_data_resumes_bit_for_bit(
    phase: str, seed: int, text: Path, never_killed_on_text: tuple[RunFolder, float], tmp_path: Path
) -> None:
    other, seconds = never_killed_on_text
    after = random.Random(seed).random() * seconds
    for _ in range(10):
        command = prepare_for(after, text, tmp_path)
        with contextlib.suppress(ProcessLookupError):
            command.send(signal.SIGKILL)
        if command.wait() == -signal.SIGKILL:
            break
        after /= 2  # it had ended: the machine has less to do than when the seconds were measured
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "data")
    assert command.wait() == -signal.SIGKILL, command.output
    print(f"{phase} + {1000 * after:.1f} ms of {1000 * seconds:.0f}")
    wait_until(lambda: not writers_below(tmp_path / "data"), seconds=5)
    assert_same(whole(tmp_path, *on(text, tmp_path)), other)
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == [
        path.name for path in (other.path.parent / "data").iterdir() if path.is_dir()
    ]
