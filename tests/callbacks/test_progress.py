"""What a training run prints: the live count of steps, and what to do next in the end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sinks.callbacks import progress
from tests.cli.small import fit


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the live line is given: the steps of the run, those done before, and those counted."""
    found: dict[str, int] = {}

    @contextmanager
    def live(what: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
        found.update(total=total, before=done, counted=0, open=1)

        def advance(count: int) -> None:
            found["counted"] += count

        yield advance
        found["open"] = 0

    monkeypatch.setattr(progress, "live", live)
    return found


def test_steps_are_counted_also_after_a_resume_and_with_accumulation(counted: dict[str, int], tmp_path: Path) -> None:
    told = ["--progress.enabled=true", "--trainer.accumulate_grad_batches=2"]
    told += ["--checkpoints.interval=2", "--checkpoints.keep=3"]
    fit(tmp_path / "run", *told)
    assert counted == {"total": 6, "before": 0, "counted": 6, "open": 0}
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/checkpoints/last.ckpt").unlink()
    (tmp_path / "run/checkpoints/step00000006.ckpt").unlink()
    (tmp_path / "run/checkpoints/last.ckpt").symlink_to("step00000004.ckpt")
    fit(tmp_path / "run", *told)
    assert counted == {"total": 6, "before": 4, "counted": 2, "open": 0}


def test_the_last_line_names_the_folder_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    fit(folder, "--progress.enabled=true")
    assert capsys.readouterr().out.splitlines()[-1] == f"finished: {folder}; next: sinks report '{folder}'"
    fit(tmp_path / "quiet")
    assert "finished" not in capsys.readouterr().out
