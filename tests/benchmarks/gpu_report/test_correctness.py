"""Which cases are checked, and that a wrong one is reported."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu_report import correctness
from benchmarks.gpu_report.stage_context import StageContext
from benchmarks.kernels.checks import Check

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


def test_a_wrong_kernel_is_reported_as_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "cases", lambda dry: DRY_CASES[:2])
    wrong = {"output": Check(0.5, 1e-3), "lse": Check(1e-9, 1e-6)}
    monkeypatch.setattr(correctness, "attention_checks", lambda call, dtype: wrong)
    result = list(correctness.run(StageContext(tmp_path, True, 1.0, float("inf"))))[-1]
    assert len(result["faults"]) == 2
    assert "output 5.0e-01 over 1.0e-03" in result["faults"][0]
    assert "| WRONG |" in correctness.markdown(result)
    assert "0 of 2 cases right" in correctness.markdown(result)
