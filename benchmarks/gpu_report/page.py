"""report.md: provenance, goals, then every stage."""

from typing import Any

from benchmarks.gpu_report.goals import verdicts
from benchmarks.gpu_report.stages import STAGES
from benchmarks.tables import table


def page(records: dict[str, dict[str, Any]], texts: dict[str, str], not_run: dict[str, str]) -> str:
    """The report.

    Args:
        records: JSON of every available stage, by file name: `stage`, `fingerprint`, `dry`, `minutes`, `state`,
            `error`, `result`, and `commands`: provenance and `seconds` of each command that worked on it.
        texts: Markdown of the same.
        not_run: why a stage was not run, by file name.
    """
    dry = any(record["dry"] for record in records.values())
    lines = ["# GPU report", ""]
    if dry:
        lines += ["**A dry run: tiny sizes, to test that everything runs. No number here indicates speed.**", ""]
    rows = (_cells(stage.file, records.get(stage.file), not_run.get(stage.file)) for stage in STAGES)
    lines += table("stage | state | seconds | device | commit | torch, triton | started", rows)[1:]
    results = {name: record["result"] for name, record in records.items()}
    lines += ["", "## Goals", *table("goal |  | ", verdicts(results, dry))]
    body = [_deeper(texts[stage.file]) for stage in STAGES if stage.file in texts]
    return "\n".join(lines) + "\n\n" + "\n".join(body)


def _cells(file: str, record: dict[str, Any] | None, not_run: str | None) -> list[str]:
    if record is None:
        return [file, not_run or "not run"]
    commands = record["commands"]
    state = f"{record['state']}: {_line(record['error'])}" if record["error"] else record["state"]
    state += f" (before; now {not_run})" if not_run else ""
    seconds = f"{sum(command['seconds'] for command in commands):.0f}"
    origins = (
        (
            f"{command['gpus']} x {command['device']}",
            f"{str(command['commit'])[:12]}{' (dirty)' if command['dirty'] else ''}",
            f"{command['versions']['torch']}, {command['versions']['triton']}",
            command["started"],
        )
        for command in commands
    )
    return [file, state, seconds, *("; ".join(dict.fromkeys(column)) for column in zip(*origins, strict=True))]


def _line(text: str) -> str:
    """The last line of an error as a table cell."""
    return text.strip().splitlines()[-1].replace("|", "/")[:200]


def _deeper(text: str) -> str:
    """Markdown with every heading one level down; fenced code is unchanged."""
    fenced = False
    lines = []
    for line in text.splitlines():
        fenced = fenced != line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines) + "\n"
