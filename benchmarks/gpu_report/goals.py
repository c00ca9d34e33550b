"""The speed goals, each with its measurement: reached, missed, or not measured and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]
Verdict = tuple[str, str]  # reached | missed | not measured, and the numbers or reason

LARGE = "2b-like"
WITHIN = 0.03
MFU = 0.50
OVERHEAD = 0.01
WAITING = 0.01


@dataclass(frozen=True)
class Goal:
    """One goal.

    Args:
        text: as it is stated.
        verdict: results by stage -> verdict.
    """

    text: str
    verdict: Callable[[Results], Verdict]


def _steps(results: Results, width: str | None = LARGE) -> list[dict[str, Any]]:
    rows = results.get("d-step", {}).get("rows", [])
    return [row for row in rows if "refused" not in row and width in (None, row["width"])]


def _verdict(reached: bool, numbers: str) -> Verdict:
    return ("reached" if reached else "missed", numbers)


def _not_measured(reason: str) -> Verdict:
    return ("not measured", reason)


def _mfu(results: Results) -> Verdict:
    baseline = next((row for row in _steps(results) if row["name"] == "baseline"), None)
    if baseline is None:
        return _not_measured("stage d has no baseline at this width")
    of_measured = f"{baseline['of_measured_rate']:.1%} of the measured product rate"
    if baseline["mfu"] is None:
        return _not_measured(f"no data sheet is known for this device; {of_measured}")
    return _verdict(baseline["mfu"] >= MFU, f"{baseline['mfu']:.1%} of the data sheet, {of_measured}")


def _covered(results: Results) -> Verdict:
    """The slowest decides; one that failed to run counts as slowest."""
    rows = [row for row in results.get("d-step", {}).get("rows", []) if row.get("covered")]
    if not rows:
        return _not_measured("stage d has no variant")
    refused = [f"{row['name']} at {row['width']} ({row['refused']})" for row in rows if "refused" in row]
    if refused:
        return _verdict(False, f"not run: {', '.join(refused)}")
    slowest = min(rows, key=lambda row: row["to_baseline"])
    numbers = f"slowest of {len(rows)}: {slowest['name']} at {slowest['width']}, {slowest['to_baseline']:.3f}"
    return _verdict(slowest["to_baseline"] >= 1 - WITHIN, numbers)


def _statistics(results: Results) -> Verdict:
    rows = [row for row in _steps(results, None) if "statistics_overhead" in row]
    if not rows:
        return _not_measured("stage d has no step with statistics")
    worst = max(rows, key=lambda row: row["statistics_overhead"])
    cost = worst["statistics_overhead"]
    return _verdict(cost <= OVERHEAD, f"{cost:.2%} at {worst['width']}, the most of {len(rows)} widths")


def _ahead(compiled: bool, name: str = "") -> Callable[[Results], Verdict]:
    def verdict(results: Results) -> Verdict:
        rows = [
            row
            for row in _steps(results, None)
            if row.get("baseline_model") and row["compiled"] is compiled and row["name"].startswith(name)
        ]
        if not rows:
            return _not_measured("stage d measured no such model")
        fastest = max(rows, key=lambda row: row["to_baseline"])
        numbers = f"{1 / fastest['to_baseline']:.3f} times the tokens/s of {fastest['name']} at {fastest['width']}"
        return _verdict(fastest["to_baseline"] <= 1, numbers)

    return verdict


def _waiting(results: Results) -> Verdict:
    runs = results.get("e-training", {}).get("runs", [])
    waits = {run["family"]: run["summary"]["data_wait_share"] for run in runs if "data_wait_share" in run["summary"]}
    if not waits:
        return _not_measured("stage e trained nothing")
    family, worst = max(waits.items(), key=lambda item: item[1])
    return _verdict(worst < WAITING, f"{worst:.2%} ({family}, the most of {len(waits)})")


GOALS = (
    Goal("MFU of at least 50 % at the 2B's width, bfloat16, baseline", _mfu),
    Goal("parameter-matched variants that the fused ops cover within 3 % of the baseline's tokens/s", _covered),
    Goal("statistics cost at most 1 % at interval 50", _statistics),
    Goal("ahead of Hugging Face's Llama with SDPA", _ahead(False, "Hugging Face")),
    Goal("not behind torch.compile'd baselines", _ahead(True)),
    Goal("waiting for data under 1 % of a step", _waiting),
)


def verdicts(results: Results, dry: bool) -> list[tuple[str, str, str]]:
    """(goal, verdict, numbers or reason) of every goal; a dry run measures nothing."""
    if dry:
        return [(goal.text, "not measured", "a dry run") for goal in GOALS]
    return [(goal.text, *goal.verdict(results)) for goal in GOALS]
