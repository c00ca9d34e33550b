"""Statistics on two ranks equal those of one process on the joined batch: exactly the same run, split differently.

The learning rate is next to nothing, so that rounding in the gradients' sum cannot feed back into what is measured.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sinks.record import RunFolder
from tests.distributed.launch import assert_same_statistics, run

CASES: dict[str, tuple[list[str], float]] = {
    "ddp": ([], 1e-6),
    "fsdp2": ([], 1e-6),
    "fsdp2+checkpointing": (["--model.execution.activation_checkpointing=true"], 1e-6),
    "ddp+compile": (["--model.execution.compile=true"], 1e-6),
    "fsdp2+bf16": (["--trainer.precision=bf16-mixed"], 1e-2),
    # Ranks have other numbers of documents, and so of queries.
    "ddp+documents": (["--statistics.document_start=5"], 1e-6),
    "fsdp2+documents": (["--statistics.document_start=5"], 1e-6),
}
STILL = ("--model.norm_rank=4", "--model.optimization.lr=1e-12")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """One process, with what a case changes besides the strategy."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def of(what: str) -> RunFolder:
        # Checkpointing must not even change the rounding; the others do, so they are compared with themselves.
        return run(folder / (what or "plain"), "one", *STILL, *(CASES[what][0] if what else []))

    return of


SLOW = ("ddp+compile", "ddp+documents", "fsdp2+documents")


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_two_ranks_equal_one_process(case: str, alone: Callable[[str], RunFolder], tmp_path: Path) -> None:
    more, tolerance = CASES[case]
    one = alone(case if case.split("+")[-1] in ("compile", "bf16", "documents") else "")
    two = run(tmp_path, case.split("+")[0], *STILL, *more)
    assert_same_statistics(two, one, tolerance)
    losses = [folder.series("validation/loss")[1] for folder in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=max(tolerance, 1e-6))
    norms = [folder.series("train/gradient_norm")[1] for folder in (one, two)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=max(10 * tolerance, 1e-5))
