"""Statistics of a transformers model on two ranks equal those of one process on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sinks.record import RunFolder
from tests.distributed.launch import assert_same_statistics
from tests.interop.held_training import train

TOLERANCE = 1e-6  # that of the suite's own models in float32


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("one")
    train(folder, "one")
    return RunFolder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_equal_one_process(strategy: str, one: RunFolder, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*launcher, "tests.interop.held_training", str(tmp_path), strategy]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    two = RunFolder(tmp_path)
    assert_same_statistics(two, one, TOLERANCE)
    losses = [folder.series("validation/loss")[1] for folder in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=TOLERANCE)
