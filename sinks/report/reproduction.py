"""Where a report's numbers come from, and how to reproduce them."""

import shlex
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sinks.report.ablation import Ablation, Run, by_seed


def _one_or_many(label: str, values: Iterable[str]) -> str:
    """One value, or all of them with their numbers of runs, so that differences are visible."""
    counts = Counter(values)
    if len(counts) == 1:
        return f"{label}: {next(iter(counts))}"
    many = "; ".join(f"{value} ({count} runs)" for value, count in sorted(counts.items()))
    return f"{label}: the runs DIFFER: {many}"


def _commit(run: Run) -> str:
    commit = run.provenance.get("commit")
    if not commit:
        return "no commit"
    dirty = run.provenance.get("dirty")
    return f"{commit[:12]}{' with uncommitted changes' if dirty else ''}"


def _versions(run: Run) -> str:
    versions: dict[str, Any] = run.provenance.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "unknown"


def _hardware(run: Run) -> str:
    threads = run.provenance.get("threads")
    device = str(run.provenance.get("device") or "unknown")
    return f"{device}, {threads} thread{'' if threads == 1 else 's'}" if threads else device


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def lines(ablation: Ablation) -> list[str]:
    """Commit, versions, machine, seeds, steps, time: one line each."""
    runs = ablation.runs
    found = [
        _one_or_many("commit", map(_commit, runs)),
        _one_or_many("hardware", map(_hardware, runs)),
        _one_or_many("versions", map(_versions, runs)),
        f"seeds: {', '.join(dict.fromkeys(run.seed_name for run in sorted(runs, key=lambda run: by_seed(run.seed))))}",
        _one_or_many("steps", (str(run.summary.get("steps", "unknown")) for run in runs if not run.diverged)),
    ]
    other = [
        variant.name
        for variant in ablation.variants
        if (asked := variant.steps or ablation.steps) is not None
        and any(run.summary.get("steps") != asked for run in variant.runs)
    ]
    if other:
        found.append(f"not the steps that ablation.yaml requests: {', '.join(other)}: run the ablation again")
    if any("averaging" in run.summary for run in runs):
        found.append(_one_or_many("weights", (run.summary.get("averaging", "of the last step") for run in runs)))
    tokens = {count for run in runs if not run.diverged and (count := run.value("tokens")) is not None}
    if tokens:
        found.append("tokens per run: " + ", ".join(f"{count:,.0f}" for count in sorted(tokens)))
    seconds = [value for run in runs if (value := run.value("wall_s")) is not None]
    if seconds:
        middle = sorted(seconds)[len(seconds) // 2]
        found.append(f"wall time: {_duration(middle)} per run (median), {_duration(sum(seconds))} in total")
    started = sorted(str(run.provenance["started"]) for run in runs if run.provenance.get("started"))
    if started:
        found.append(f"started: {started[0]}" if len(started) == 1 else f"started: {started[0]} to {started[-1]}")
    return found


def again(ablation: Ablation) -> list[str]:
    """The commands that repeat the ablation, one run, and this report."""
    root, above = shlex.quote(str(ablation.root)), shlex.quote(str(ablation.root.parent))
    commits = {commit for run in ablation.runs if (commit := run.provenance.get("commit"))}
    commands = [f"git checkout {commits.pop()}"] if len(commits) == 1 else []
    if ablation.commands:
        commands += ablation.commands
    elif ablation.file:
        seeds = ",".join(map(str, sorted({run.seed for run in ablation.runs if run.seed is not None})))
        steps = f" --steps={ablation.steps}" if ablation.steps else ""
        only = f" --variants={','.join(v.name for v in ablation.variants)}" if ablation.not_run else ""
        commands.append(f"sinks grid {shlex.quote(ablation.file)} --seeds={seeds}{steps}{only} --runs={above}")
    example = (ablation.baseline.runs if ablation.baseline else ablation.runs)[0]
    config = shlex.quote(str(example.folder.config_file))
    commands.append(f"sinks fit -c {config} --run.dir runs/again  # a single run")
    commands.append(f"sinks report {root}")
    return commands


def recorded(ablation: Ablation) -> list[str]:
    """The command that each run recorded."""
    return [
        f"{variant.label}, seed {run.seed_name}: {shlex.join(map(str, command))}"
        for variant in ablation.variants
        for run in variant.runs + variant.diverged
        if (command := run.provenance.get("command"))
    ]
