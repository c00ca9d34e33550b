"""Which cases are checked, and that a wrong one is reported."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_report import correctness
from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels import checks
from benchmarks.kernels.checks import LAYOUTS, Check
from tests.kernels.conftest import triton_device

__all__ = ["triton_device"]
Step = Callable[[], list[Tensor]]

DRY_CASES = correctness.cases(dry=True)


def test_the_cases_cover_every_pair_of_choices() -> None:
    attention = [case for case in correctness.cases(dry=False) if case["kernel"] == "attention"]
    axes = {
        "dtype": ("bfloat16", "float16", "float32"),
        "normalizer": correctness.NORMALIZERS,
        "head_dim": correctness.HEAD_DIMS,
        "gate": correctness.GATES,
    }
    for first, values in axes.items():
        for second, others in axes.items():
            if first < second:
                found = Counter((case[first], case[second]) for case in attention)
                assert not [pair for pair in ((a, b) for a in values for b in others) if not found[pair]]
    assert {case["kv_heads"] == case["heads"] for case in attention} == {True, False}
    assert len({correctness.describe(case) for case in correctness.cases(dry=False)}) == len(
        correctness.cases(dry=False)
    )
    long = {(case["normalizer"], case["head_dim"]) for case in attention if case["tokens"] == 4096}
    assert long == {(normalizer, head_dim) for normalizer in correctness.NORMALIZERS for head_dim in (64, 128)}
    assert {case.get("layout") for case in attention} == {None, *LAYOUTS}


def capture_nothing(step: Step) -> tuple[Callable[[], None], list[Tensor]]:
    """As a CUDA graph: a replay computes anew from the same inputs into the same results."""
    results = step()

    def replay() -> None:
        for result, new in zip(results, step(), strict=True):
            result.copy_(new)

    return replay, results


def capture_and_forget(step: Step) -> tuple[Callable[[], None], list[Tensor]]:
    """A graph that read values during its capture: a replay changes nothing."""
    return lambda: None, step()


@pytest.mark.parametrize("replays", [True, False])
def test_a_replayed_graph_is_compared_with_a_plain_pass(
    replays: bool, monkeypatch: pytest.MonkeyPatch, triton_device: str
) -> None:
    case = {"kernel": "graph", "dtype": "float32", "normalizer": "learnable_sink", "gate": "element",
            "head_dim": 16, "tokens": 20, "heads": 2, "kv_heads": 1}  # fmt: skip
    monkeypatch.setattr(checks, "capture", capture_nothing if replays else capture_and_forget)
    row = correctness.check(case, triton_device)
    assert row["case"].endswith("in a CUDA graph")
    assert {name for name, found in row["checks"].items() if found["passed"]} == (
        set(row["checks"]) if replays else set()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_is_captured_and_replayed() -> None:
    (case,) = [case for case in correctness.cases(dry=False) if case["kernel"] == "graph"]
    assert all(found["passed"] for found in correctness.check(case, "cuda")["checks"].values())


def test_a_wrong_kernel_is_reported_as_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "cases", lambda dry: DRY_CASES[:2])
    wrong = {"output": Check(0.5, 1e-3), "lse": Check(1e-9, 1e-6)}
    monkeypatch.setattr(correctness, "attention_checks", lambda call, dtype, layout: wrong)
    result = list(correctness.run(StageContext(tmp_path, True, 1.0, float("inf"))))[-1]
    assert len(result["faults"]) == 2
    assert "output 5.0e-01 over 1.0e-03" in result["faults"][0]
    assert "| WRONG |" in correctness.markdown(result)
    assert "0 of 2 cases right" in correctness.markdown(result)
