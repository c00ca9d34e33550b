"""State that a resumed run must not lose or repeat: the random generators and the TensorBoard events."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sinks.callbacks.random_state import RandomState, random_state, restore_random_state
from sinks.cli import main
from sinks.record import RunFolder
from tests.cli.small import SMALL, fit, weights, without_clocks
from tests.faults.processes import callbacks, start_ranks

DROPPING = ["--model.feed_forward", "tests.faults.parts.DroppedGELU"]


def draw() -> list[float]:
    """One number of every generator; two of those that keep the second of a pair."""
    own = [random.random(), random.gauss(0, 1), *np.random.normal(size=3).tolist(), float(torch.rand(()))]
    return [*own, float(torch.randn((), device="cuda"))] if torch.cuda.is_available() else own


def test_every_generator_is_restored(tmp_path: Path) -> None:
    draw()
    torch.save(random_state(), tmp_path / "state.pt")
    following = [draw(), draw()]
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw(), draw()] == following


@pytest.mark.parametrize(("ranks", "restored"), [(1, True), (2, False)])
def test_generators_of_another_number_of_ranks_are_not_restored(ranks: int, restored: bool) -> None:
    class Trainer:
        world_size, global_rank = 1, 0

    callback = RandomState()
    callback.load_state_dict({"ranks": [random_state()] * ranks})
    following = draw()
    callback.on_train_batch_start(Trainer(), None, None, 0)  # type: ignore[arg-type]
    assert (draw() == following) == restored


@pytest.mark.parametrize("more", [[], ["--data.num_workers=1"]], ids=["no workers", "a worker"])
def test_a_model_that_draws_in_its_steps_resumes_bit_for_bit(more: list[str], tmp_path: Path) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    fit(whole, *DROPPING, *more, "--checkpoints.interval", "2")
    arguments = [*SMALL, *DROPPING, *more, "--run.dir", str(interrupted)]
    with pytest.raises(RuntimeError, match="plug"):
        main(["fit", *arguments, *callbacks(interrupted, ("Break", {"step": 5}))])
    assert main(["fit", *arguments, "--checkpoints.interval", "2"]) == 0
    one, other = RunFolder(whole), RunFolder(interrupted)
    assert without_clocks(one.metrics()) == without_clocks(other.metrics())
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


def test_each_rank_gets_its_own_generators_back(tmp_path: Path) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    arguments = ["fit", *SMALL, *DROPPING, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    # Lightning gives all ranks one seed; a rank that has diverged must stay so.
    apart = ("DrawApart", {})
    reference = start_ranks([*arguments, "--run.dir", str(whole), *callbacks(whole, apart)], tmp_path / "log")
    assert [rank.wait() for rank in reference] == [0, 0], [rank.output for rank in reference]
    killed = callbacks(interrupted, apart, ("Kill", {"step": 5, "rank": 0}))
    first = start_ranks([*arguments, "--run.dir", str(interrupted), *killed], tmp_path / "first")
    assert [rank.wait() != 0 for rank in first] == [True, True]
    second = start_ranks([*arguments, "--run.dir", str(interrupted), *callbacks(interrupted)], tmp_path / "second")
    assert [rank.wait() for rank in second] == [0, 0], [rank.output for rank in second]
    one, other = RunFolder(whole), RunFolder(interrupted)
    assert without_clocks(one.metrics()) == without_clocks(other.metrics())
    assert all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [*SMALL, "--run.dir", str(tmp_path / "run"), "--trainer.log_every_n_steps", "1"]
    with pytest.raises(RuntimeError, match="plug"):
        main(["fit", *arguments, *callbacks(tmp_path / "run", ("Break", {"step": 6}), every=4)])
    assert main(["fit", *arguments, "--checkpoints.interval", "4"]) == 0
    run = RunFolder(tmp_path / "run")
    assert len(list(run.path.glob("events.*"))) == 2
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert [e.step for e in events.Scalars("1_overview/loss/train")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events.Scalars("1_overview/loss/validation")] == [3, 6]
    assert [e.step for e in events.Images("3_maps/attention_first_token_mass")] == [3, 6]
    assert [e.value for e in events.Scalars("1_overview/loss/train")] == pytest.approx(
        run.series("train/loss")[1].tolist()
    )
