"""A goal is reached or missed by its numbers, and not measured without them."""

from typing import Any

import pytest

from benchmarks.gpu_report.goals import GOALS, LARGE, verdicts

MFU, COVERED, STATISTICS, LLAMA, COMPILED, WAITING = (goal.text for goal in GOALS)


def row(name: str, to_baseline: float = 1.0, width: str = LARGE, **more: Any) -> dict[str, Any]:
    return {"width": width, "name": name, "to_baseline": to_baseline, "mfu": None, "of_measured_rate": 0.6} | more


def verdict(goal: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]] | None = None) -> tuple[str, str]:
    results = {"d-step": {"rows": rows}, "e-training": {"runs": runs or []}}
    return next((outcome, numbers) for text, outcome, numbers in verdicts(results, dry=False) if text == goal)


def test_without_results_nothing_is_reached() -> None:
    assert {outcome for _, outcome, _ in verdicts({}, dry=False)} == {"not measured"}


@pytest.mark.parametrize(("mfu", "outcome"), [(0.5, "reached"), (0.4999, "missed"), (None, "not measured")])
def test_mfu_is_the_baselines_at_the_large_width(mfu: float | None, outcome: str) -> None:
    rows = [row("baseline", mfu=mfu), row("baseline", width="60m", mfu=0.9), row("gated-both", mfu=0.9)]
    assert verdict(MFU, rows)[0] == outcome


def test_the_slowest_covered_variant_decides() -> None:
    rows = [row("gated-both", 0.99, covered=True), row("dyt", 0.5, covered=False)]
    assert verdict(COVERED, rows)[0] == "reached"
    outcome, numbers = verdict(COVERED, [*rows, row("gated-norm", 0.96, width="60m", covered=True)])
    assert outcome == "missed"
    assert "gated-norm at 60m, 0.960" in numbers


def test_a_covered_variant_that_could_not_run_misses_the_goal() -> None:
    rows = [
        row("gated-both", 0.99, covered=True),
        {"width": LARGE, "name": "gated-norm", "covered": True, "refused": "x"},
    ]
    outcome, numbers = verdict(COVERED, rows)
    assert outcome == "missed"
    assert "gated-norm" in numbers


def test_statistics_count_where_they_cost_most() -> None:
    cheap = row("baseline", statistics_overhead=0.01)
    assert verdict(STATISTICS, [cheap, row("gated-both")])[0] == "reached"
    outcome, numbers = verdict(STATISTICS, [cheap, row("baseline", width="60m", statistics_overhead=0.011)])
    assert (outcome, numbers) == ("missed", "1.10% at 60m, the most of 2 widths")


def test_baseline_models_are_compared_at_every_width_compiled_and_not() -> None:
    rows = [
        row("Hugging Face Llama, SDPA", 0.8, baseline_model=True, compiled=False),
        row("Hugging Face Llama, SDPA, layers compiled", 0.98, baseline_model=True, compiled=True),
        row("litgpt GPT, compiled", 1.02, width="60m", baseline_model=True, compiled=True),
    ]
    assert verdict(LLAMA, rows) == ("reached", f"1.250 times the tokens/s of Hugging Face Llama, SDPA at {LARGE}")
    assert verdict(COMPILED, rows)[0] == "missed"
    assert verdict(COMPILED, rows[:2])[0] == "reached"


def test_the_run_that_waits_most_for_data_decides() -> None:
    runs = [{"family": name, "summary": {"data_wait_share": share}} for name, share in (("a", 0.001), ("b", 0.02))]
    assert verdict(WAITING, [], runs[:1])[0] == "reached"
    assert verdict(WAITING, [], runs) == ("missed", "2.00% (b, the most of 2)")
