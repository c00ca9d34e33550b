"""A run started in Python is a run: the same numbers as from the command line, resumed, finished, loaded."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from sinks.cli import main
from sinks.data.backcopy import Backcopy
from sinks.described import section_of
from sinks.errors import UserError
from sinks.families import CausalLM, Gated
from sinks.models.decoder import Architecture
from sinks.models.gated_norm import GatedNorm
from sinks.record import RunFolder
from sinks.runs import load_run, train
from tests.checks.user_parts import SquashedNorm
from tests.cli.small import without_clocks

TINY = Architecture(d_model=16, n_layers=2, n_heads=2, ffn_hidden=24)
OPTIONS: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "precision": "32-true", "val_check_interval": 3, "log_every_n_steps": 2,
    "gradient_clip_val": 1.0,
}  # fmt: skip
SECTIONS = {"statistics": {"interval": 2}, "progress": {"enabled": False}, "notes": {"enabled": False}}


def data() -> Backcopy:
    return Backcopy(context_length=12, batch_size=4, validation_rows=10)


def start(folder: Path, max_steps: int = 6, **options: Any) -> dict[str, Any]:
    model = Gated(data().vocab_size, 12, architecture=TINY, norm_rank=3)
    return train(model, data(), folder, max_steps=max_steps, trainer=OPTIONS, sections=SECTIONS, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    assert start(folder, seed=3, variant="mine")["steps"] == 6
    return RunFolder(folder)


def test_the_command_line_repeats_it_bit_for_bit(run: RunFolder, tmp_path: Path) -> None:
    assert main(["fit", "-c", str(run.config_file), "--run.dir", str(tmp_path), "--statistics.interval=2"]) == 0
    again = RunFolder(tmp_path)
    assert without_clocks(again.metrics()) == without_clocks(run.metrics())
    ours, theirs = (torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (run, again))
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


def test_a_finished_folder_rejects_another_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(run.path, seed=3, variant="mine")["steps"] == 6
    assert "is finished: nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run of another configuration"):
        start(run.path, seed=4)


def test_it_resumes_where_it_stopped(run: RunFolder, tmp_path: Path) -> None:
    import lightning

    class Stop(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                raise KeyError("stop")

    interrupted = SECTIONS | {"checkpoints": {"interval": 2}}
    model = Gated(data().vocab_size, 12, architecture=TINY, norm_rank=3)
    with pytest.raises(KeyError):
        train(model, data(), tmp_path, max_steps=6, seed=3, trainer=OPTIONS, sections=interrupted, callbacks=[Stop()])
    start(tmp_path, seed=3)
    assert without_clocks(RunFolder(tmp_path).metrics()) == without_clocks(run.metrics())


def test_it_is_loaded_and_validated(run: RunFolder) -> None:
    loaded = load_run(run.path)
    assert isinstance(loaded.model, Gated)
    assert loaded.model.init_args["norm_rank"] == 3
    assert main(["validate", "-c", str(run.config_file), "--run.dir", str(run.path)]) == 0


def test_arguments_become_a_section() -> None:
    model = CausalLM(
        11, 12, architecture=TINY, norm=functools.partial(GatedNorm, rank=3, norm=SquashedNorm), head_norm=SquashedNorm
    )
    arguments = section_of(model, "vocab_size", "context_length")["init_args"]
    assert arguments["architecture"]["d_model"] == 16
    assert arguments["norm"] == {
        "class_path": "sinks.models.gated_norm.GatedNorm",
        "init_args": {"rank": 3, "norm": {"class_path": "tests.checks.user_parts.SquashedNorm"}},
    }
    assert arguments["head_norm"] == {"class_path": "tests.checks.user_parts.SquashedNorm"}


def test_what_no_configuration_can_hold_is_rejected() -> None:
    model = CausalLM(11, 12, architecture=TINY, norm=lambda d: GatedNorm(d, 3))
    with pytest.raises(
        UserError, match=r"norm is .*, which config.yaml cannot hold: give a class, or functools.partial"
    ):
        section_of(model)


def test_a_callback_that_stops_training_ends_a_sitting_and_not_the_run(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import lightning

    class Enough(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == 3

    model = Gated(data().vocab_size, 12, architecture=TINY, norm_rank=3)
    assert train(model, data(), tmp_path, max_steps=6, seed=3, trainer=OPTIONS, callbacks=[Enough()]) is None
    assert "stopped at step 3 of 6: the same command resumes\n" in capsys.readouterr().out
    assert not RunFolder(tmp_path).finished
    assert start(tmp_path, seed=3, variant="mine")["steps"] == 6
    assert RunFolder(tmp_path).summary()["val_loss"] == run.summary()["val_loss"]
