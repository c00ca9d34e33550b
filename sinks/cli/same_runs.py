"""Runs of a grid that are finished elsewhere: in another ablation's folder, or in recorded results."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinks.cli.schedule import PlannedRun
from sinks.errors import UserError
from sinks.record import RunFolder, find_runs
from sinks.record.atomic import replacing


def take_over(plan: Sequence[PlannedRun], roots: Sequence[Path]) -> list[str]:
    """Copy the finished runs of the same fingerprint into the folders of runs that have not begun.

    Args:
        plan: in order; a run that takes numbers from another has a fingerprint once that one is finished.
        roots: below which finished runs are looked for.

    Returns:
        A line per run that is copied.
    """
    candidates = _finished(roots)
    lines = []
    for run in plan:
        if run.folder.exists():
            continue
        # A fingerprint needs the whole configuration and the data: seconds, spent only where one may match.
        if not any(_may_match(run, provenance) for _, provenance in candidates):
            continue
        try:
            own = identity_of(run.command()[1:])
        except UserError:
            continue  # what it needs is unfinished, or the run itself reports it
        found = (f for f, provenance in candidates if provenance["config_fingerprint"] == own["config_fingerprint"])
        if (source := next(found, None)) is not None:
            _copy(source, run, own["variant"])
            lines.append(f"{run.name} is finished in {source.path}: copied")
    return lines


def _finished(roots: Sequence[Path]) -> list[tuple[RunFolder, dict[str, Any]]]:
    """Finished runs and their provenance; what cannot be read is passed over."""
    found = []
    for folder in (folder for root in roots if root.is_dir() for folder in find_runs(root)):
        try:
            provenance = folder.provenance() if folder.finished and folder.has_provenance else {}
        except UserError:
            continue
        if provenance.get("config_fingerprint"):
            found.append((folder, provenance))
    return found


def _may_match(run: PlannedRun, provenance: dict[str, Any]) -> bool:
    return f"--seed_everything={provenance.get('seed')}" in run.arguments


def identity_of(arguments: list[str]) -> dict[str, Any]:
    """What names the run that `sinks fit` makes of such arguments, as its provenance states it.

    Raises:
        UserError: as `sinks fit`.
    """
    import yaml

    from sinks.cli.training import command_line
    from sinks.runs.train import identify, recorder_of

    built = command_line(arguments, run=False)
    built.datamodule.prepare_data()
    identify(built.trainer, built.model, built.datamodule, yaml.safe_load(built.text()))
    return recorder_of(built.trainer).identity


def _copy(source: RunFolder, run: PlannedRun, variant: str) -> None:
    with replacing(run.folder) as temporary:
        shutil.copytree(source.path, temporary, symlinks=True, ignore=shutil.ignore_patterns("events.*", ".lock"))
        copy = RunFolder(temporary)
        copy.write_provenance(copy.provenance() | {"variant": variant})
        copy.finish(copy.summary() | {"variant": variant})
