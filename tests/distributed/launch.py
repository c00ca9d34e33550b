"""`sinks fit` on several processes of this machine (gloo), started by torchrun, each test's in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from sinks.record import RunFolder
from tests.cli.small import small

SHARDED = "--trainer.strategy=sinks.parallel.strategy.Sharded"
GATHERED = "--trainer.strategy.save_distributed_checkpoint=false"
# Strategy: processes, of those that read different data, arguments.
STRATEGIES: dict[str, tuple[int, int, list[str]]] = {
    "one": (1, 1, []),
    "ddp": (2, 2, ["--trainer.strategy=ddp"]),
    "fsdp2": (2, 2, [SHARDED, GATHERED]),
    "tensor-parallel": (2, 1, [SHARDED, GATHERED, "--trainer.strategy.tensor_parallel_size=2"]),
    "fsdp2 x tensor-parallel": (4, 2, [SHARDED, GATHERED, "--trainer.strategy.tensor_parallel_size=2"]),
    "hsdp": (4, 4, [SHARDED, GATHERED, "--trainer.strategy.replicas=2"]),
}


def arguments_of(folder: Path, strategy: str, *more: str, variant: str = "gated-both", rows: int = 4) -> list[str]:
    """Of `sinks`: the same global batch whatever the strategy, and 11 validation rows, an uneven split."""
    processes, readers, arguments = STRATEGIES[strategy]
    return [
        *("fit", *small(variant)),
        *("--trainer.precision=32-true", "--data.validation_rows=11"),
        *(f"--data.batch_size={rows // readers}", f"--trainer.devices={processes}"),
        *("--run.dir", str(folder), *arguments, *more),
    ]


def run(folder: Path, strategy: str, *more: str, variant: str = "gated-both", rows: int = 4) -> RunFolder:
    """A run in processes of its own, see `arguments_of`."""
    processes = STRATEGIES[strategy][0]
    arguments = arguments_of(folder, strategy, *more, variant=variant, rows=rows)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    if processes == 1:
        launcher = [sys.executable, "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([*launcher, "sinks", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(folder)


def assert_same_statistics(found: RunFolder, expected: RunFolder, tolerance: float) -> None:
    """Every array of both stages, relative to its largest value."""
    for stage in ("train", "validation"):
        ours, theirs = found.statistics(stage), expected.statistics(stage)
        assert (ours.steps.tolist(), ours.sites) == (theirs.steps.tolist(), theirs.sites)
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in theirs.arrays.items():
            scale = np.nanmax(np.abs(array), initial=1e-30)
            np.testing.assert_allclose(
                ours.arrays[name], array, rtol=tolerance, atol=tolerance * scale, err_msg=f"{stage} {name}"
            )
