"""report.md: where the numbers come from, the goals, then every stage."""

from typing import Any

from benchmarks.gpu_report.goals import verdicts
from benchmarks.gpu_report.stages import STAGES


def page(records: dict[str, dict[str, Any]], texts: dict[str, str], not_run: dict[str, str]) -> str:
    """The whole report.

    Args:
        records: JSON of every stage that has one, by file name.
        texts: Markdown of the same.
        not_run: why a stage was not run, by file name.
    """
    dry = any(record["dry"] for record in records.values())
    lines = ["# GPU report", ""]
    if dry:
        lines += ["**A dry run: tiny sizes, to see that all runs. No number here says anything about speed.**", ""]
    lines += [
        "| stage | state | seconds | device | commit | torch, triton | started |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        record = records.get(stage.file)
        if record is None:
            lines.append(f"| {stage.file} | {not_run.get(stage.file, 'not run')} | | | | | |")
            continue
        known = record["provenance"]
        versions = known.get("versions", {})
        state = f"{record['state']}: {_line(record['error'])}" if record["error"] else record["state"]
        if stage.file in not_run:
            state += f" (before; now {not_run[stage.file]})"
        lines.append(
            f"| {stage.file} | {state} | {record['seconds']:.0f} | {known.get('gpus', '')} x {known.get('device', '')} "
            f"| {str(known.get('commit'))[:12]}{' (dirty)' if known.get('dirty') else ''} "
            f"| {versions.get('torch')}, {versions.get('triton')} | {known.get('started', '')} |"
        )
    lines += ["", "## Goals", "", "| goal | | |", "|---|---|---|"]
    results = {name: record["result"] for name, record in records.items()}
    lines += [f"| {goal} | {verdict} | {numbers} |" for goal, verdict, numbers in verdicts(results, dry)]
    body = [_deeper(texts[stage.file]) for stage in STAGES if stage.file in texts]
    return "\n".join(lines) + "\n\n" + "\n".join(body)


def _line(text: str) -> str:
    """The last line of an error, fit for a table."""
    return text.strip().splitlines()[-1].replace("|", "/")[:200]


def _deeper(text: str) -> str:
    """Markdown with every heading one level down; what stands between fences is left alone."""
    fenced = False
    lines = []
    for line in text.splitlines():
        fenced = fenced != line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines) + "\n"
