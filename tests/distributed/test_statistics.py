"""Statistics on two ranks equal those of one process on the joined batch: exactly the same run, split differently.

Runs are whole `sinks fit` commands under torchrun (gloo), each in processes of its own. The learning rate is next to
nothing, so that rounding in the gradients' sum cannot feed back into what is measured.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sinks.record import RunFolder
from tests.cli.small import small

STRATEGIES = {
    "ddp": ["--trainer.strategy=ddp"],
    "fsdp2": [
        "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
        "--trainer.strategy.data_parallel_size=2",
        "--trainer.strategy.tensor_parallel_size=1",
        "--trainer.strategy.save_distributed_checkpoint=false",
    ],
}
CASES: dict[str, tuple[list[str], float]] = {
    "ddp": ([], 1e-6),
    "fsdp2": ([], 1e-6),
    "ddp+accumulation": (["--trainer.accumulate_grad_batches=2"], 1e-6),
    "fsdp2+checkpointing": (["--model.execution.activation_checkpointing=true"], 1e-6),
    "ddp+compile": (["--model.execution.compile=true"], 1e-6),
    "fsdp2+bf16": (["--trainer.precision=bf16-mixed"], 1e-2),
}


def run(folder: Path, ranks: int, *more: str) -> RunFolder:
    """A run on one or two ranks with the same global batch of 4 rows and 11 validation rows, an uneven split."""
    arguments = [
        *small("gated-both"),
        *("--model.norm_rank=4", "--trainer.precision=32-true", "--model.optimization.lr=1e-12"),
        *("--data.validation_rows=11", f"--data.batch_size={4 // ranks}", f"--trainer.devices={ranks}"),
        *("--run.dir", str(folder), *more),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    if ranks == 1:
        launcher = [sys.executable, "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([*launcher, "sinks", "fit", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """One process, with what a case changes beside the strategy."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def of(what: str) -> RunFolder:
        # Checkpointing must not even change the rounding; the others do, so they are compared with themselves.
        return run(folder / (what or "plain"), 1, *(CASES[what][0] if what else []))

    return of


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if "compile" in case else ()) for case in CASES]
)
def test_two_ranks_equal_one_process(case: str, alone: Callable[[str], RunFolder], tmp_path: Path) -> None:
    more, tolerance = CASES[case]
    one = alone(case if case.split("+")[-1] in ("accumulation", "compile", "bf16") else "")
    two = run(tmp_path, 2, *STRATEGIES[case.split("+")[0]], *more)
    for stage in ("train", "validation"):
        expected, found = one.statistics(stage), two.statistics(stage)
        assert found.steps.tolist() == expected.steps.tolist()
        assert found.sites == expected.sites
        assert found.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            scale = np.nanmax(np.abs(array), initial=1e-30)
            np.testing.assert_allclose(
                found.arrays[name], array, rtol=tolerance, atol=tolerance * scale, err_msg=f"{stage} {name}"
            )
    losses = [folder.series("validation/loss")[1] for folder in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=max(tolerance, 1e-6))
    norms = [folder.series("train/gradient_norm")[1] for folder in (one, two)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=max(10 * tolerance, 1e-5))
