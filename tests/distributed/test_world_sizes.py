"""A run resumed with another number of processes sees every sample of the epoch exactly once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sinks.record import RunFolder
from sinks.runs import load_run
from tests.cli.small import ROOT, small
from tests.distributed.seen import digest, seen

STEPS, ROWS = 24, 4  # optimizer steps, rows a step


def start(folder: Path, processes: int, killed_after: int | None) -> subprocess.CompletedProcess[str]:
    seen_rows = {"class_path": "tests.distributed.seen.SeenRows", "init_args": {"folder": str(folder)}}
    seen_rows["init_args"]["killed_after"] = killed_after  # type: ignore[index]
    (folder / "callbacks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [seen_rows]}}))
    arguments = [
        *small("gated-both"),
        *("--data=Text", f"--data.sources=[{folder}/text]", f"--data.folder={folder}/data"),
        *("--data.context_length=12", f"--data.batch_size={ROWS // processes}", "--data.validation_rows=4"),
        *("--data.vocab_size=300", "-c", str(folder / "callbacks.yaml"), f"--trainer.devices={processes}"),
        *(f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=8", "--checkpoints.interval=3"),
        *(["--trainer.strategy=ddp"] if processes > 1 else []),
        *("--trainer.precision=32-true", "--run.dir", str(folder / "run")),
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "sinks"]
    command = [sys.executable, *(launcher if processes > 1 else ["-m", "sinks"]), "fit", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = np.random.default_rng(0).integers(10**5, 10**6, size=270)
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(" ".join(map(str, words[9 * i : 9 * i + 9])))
    return tmp_path


def test_one_two_one_processes_see_every_sample_of_the_epoch_once(folder: Path) -> None:
    for processes, killed_after in ((1, 7), (2, 16), (1, None)):
        done = start(folder, processes, killed_after)
        assert (done.returncode == 0) == (killed_after is None), done.stdout + done.stderr
    run = RunFolder(folder / "run")
    assert run.finished
    rows = seen(folder)
    assert rows.keys() == {(step, place) for step in range(1, STEPS + 1) for place in range(ROWS)}
    in_order = [rows[key] for key in sorted(rows)]
    samples = load_run(run.path).data.train_set()
    digests = [digest(samples[i]) for i in range(len(samples))]  # type: ignore[arg-type]
    assert len(set(digests)) == len(digests) <= len(in_order)
    assert sorted(in_order[: len(digests)]) == sorted(digests)
    assert in_order[: len(digests)] != digests
