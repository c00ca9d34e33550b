"""The estimates of the goals, and the page that shows them."""

from pathlib import Path

import pytest

from benchmarks.gpu_report import estimate
from benchmarks.gpu_report.goals import GOALS
from benchmarks.tables import table

PAGE = Path(__file__).parents[3] / "docs/gpu_report.md"


def test_a_step_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = estimate.Ends(0.25, 0.5)
    monkeypatch.setattr(estimate, "utilization", lambda kernel, head_dim: used)
    only = {"linear": 0.0, "scores": 0.0, "kept": 0, "parameters": 0}
    products = estimate.Work("a", **only | {"linear": estimate.PEAK}, head_dim=64)
    attention = estimate.Work("b", **only | {"scores": estimate.PEAK}, head_dim=64)
    kept = estimate.Work("c", **only | {"kept": int(estimate.MEMORY)}, head_dim=64)
    assert estimate.at_both(products.seconds) == pytest.approx((1 / 0.6, 1 / 0.8))
    # Two products forward, four for the keys, three for the queries.
    assert estimate.at_both(attention.seconds) == pytest.approx((4.5 / 0.25, 4.5 / 0.5))
    assert attention.seconds(0, attention=7.0) == 7.0
    assert estimate.at_both(kept.seconds) == pytest.approx((5 / 0.7, 5 / 0.9))
    assert kept.seconds(0, estimate.EAGER_PASSES) == pytest.approx(2 * kept.seconds(0))
    assert (products.flops, attention.flops) == (estimate.PEAK, 3 * estimate.PEAK)


@pytest.mark.parametrize("kernel", ["forward", "keys", "queries"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_attention_is_never_taken_to_be_faster_than_the_model(kernel: str, head_dim: int) -> None:
    cautious, hopeful = estimate.utilization(kernel, head_dim)
    assert 0.1 < cautious < hopeful < 1
    assert cautious <= estimate.PUBLISHED


@pytest.mark.slow
def test_the_page_has_what_the_command_prints() -> None:
    found = estimate.estimates()
    assert {goal for goal, *_ in found} == {goal.text for goal in GOALS}
    assert "\n".join(table("goal | width | estimate | ", found)[1:]) in PAGE.read_text(encoding="utf-8")
