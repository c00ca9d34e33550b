"""What `sinks accuracy` wrote into the runs of an ablation, in points, as a table of its variants."""

from collections.abc import Mapping
from typing import Any

from sinks.report.ablation import Run, Variant
from sinks.report.measured import ACCURACY, results
from sinks.report.outcomes import Comparison
from sinks.report.spread import Spread
from sinks.report.tables import NONE, Table, with_half_range, with_interval
from sinks.stats.paired import Paired

NOTE = (
    "In percent, mean and half range over seeds (of one seed, its 95 % interval over rows); below, the difference to "
    "the baseline's run of the same seed on the same rows in points, with its 95 % interval, not adjusted for how many "
    "tasks there are. docs/evaluate.md defines the tasks; a choice among n is right by chance in 1 of n."
)
SAME = ("rows_sha256", "choices", "continuation_tokens", "seed")


def named(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Accuracies by the name of their task."""
    induction = content["induction"]
    return {
        "next token": content["next_token"],
        f"continuation, 1 of {content['choices']}": content["continuation"],
        **{_words(name): value for name, value in content["recall"].items()},
        "induction, second copy": induction["second_copy"],
        "induction, first copy": induction["first_copy"],
    }


def _words(name: str) -> str:
    return "next token, new pair" if name == "new" else f"recall over {name} tokens"


def table(comparison: Comparison) -> Table | None:
    """Two rows per variant, accuracy and difference to the baseline; None if no run was measured."""
    measured = {r.variant.name: _of(r.variant) for r in comparison.results}
    tasks = list(
        dict.fromkeys(name for by_seed in measured.values() for found in by_seed.values() for name in named(found))
    )
    if not tasks:
        return None
    base = comparison.baseline
    rows = []
    for result in comparison.results:
        own = measured[result.variant.name]
        if not own:
            continue
        rows.append([result.variant.label, str(len(own)), *(_level(own, task) for task in tasks)])
        if base is not None and result.variant is not base.variant:
            reference = measured[base.variant.name]
            changes = [with_interval(_paired(own, reference, task), 1) for task in tasks]
            if set(changes) != {NONE}:
                rows.append(["minus the baseline", NONE, *changes])
    return Table(["variant", "seeds", *tasks], rows)


def _of(variant: Variant) -> dict[int | None, dict[str, Any]]:
    """By seed, of several measurements of a run that on the most rows."""
    found = {run.seed: _most_rows(run) for run in variant.runs}
    return {seed: content for seed, content in found.items() if content is not None}


def _most_rows(run: Run) -> dict[str, Any] | None:
    return max(results(run.folder.path, ACCURACY), key=lambda content: content["rows"][0], default=None)


def _level(own: Mapping[int | None, Mapping[str, Any]], task: str) -> str:
    values = [value for content in own.values() if (value := named(content).get(task)) is not None]
    if len(values) == 1 and values[0]["low"] is not None:
        return f"{values[0]['mean']:.1f} [{values[0]['low']:.1f}, {values[0]['high']:.1f}]"
    return with_half_range(Spread.of(value["mean"] for value in values), 1)


def _paired(
    own: Mapping[int | None, Mapping[str, Any]], reference: Mapping[int | None, Mapping[str, Any]], task: str
) -> Paired | None:
    return Paired.of(
        [
            mine["mean"] - theirs["mean"]
            for seed, content in own.items()
            if seed is not None
            and (other := reference.get(seed)) is not None
            and all(content.get(key) == other.get(key) for key in SAME)
            and (mine := named(content).get(task)) is not None
            and (theirs := named(other).get(task)) is not None
        ]
    )
