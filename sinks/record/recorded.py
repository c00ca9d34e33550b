"""Small copies of finished runs, to commit: what reports read, without checkpoints.

summary.json is copied as it is. Numbers in the JSON files of probes/, quantization/, accuracy/ and validation/ have six
digits, and of each edit of a probe the change of loss is kept, without its sums over units and its course over rows.
config.yaml and provenance.json name the run's folder as it was below `runs/`. Of the last validation everything is
kept; of the others only what figures over training read, and the first-token mass of every head. Numbers in
metrics.jsonl have six digits. What was logged between validations is left out. Of more than 50 validations 50 are kept,
evenly spaced, the first and the last among them.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sinks.record.folder import NotRecorded, RunFolder, Statistics
from sinks.record.yaml_file import read_yaml

VALIDATIONS = 50
# What is kept of every validation, in metrics.jsonl and in statistics/.
OF_METRICS = (
    "step", "tokens", "wall_s", "train/loss", "train/auxiliary_loss", "train/gradient_norm", "train/learning_rate",
    "validation/loss",
    "validation/attention/first_token_mass_max_head", "validation/residual/sink_score",
)  # fmt: skip
OF_STATISTICS = ("attention/first_token_mass",)
COPIED = ("probes", "quantization", "accuracy", "validation")
LARGEST = 100_000  # bytes of one run that are fit to be committed


def record(source: RunFolder, target: RunFolder, name: str) -> int:
    """Write the small copy of a finished run; summary.json last, as a run does.

    Args:
        source: a finished run.
        target: where the copy goes; an older copy is replaced.
        name: of the folder as the copy states it, e.g. runs/backcopy/baseline/seed0.

    Returns:
        Bytes of the copy.

    Raises:
        UserError: if the run is damaged.
    """
    summary, metrics = source.summary(), source.metrics()
    steps = _kept_steps([line["step"] for line in metrics if "validation/loss" in line])
    shutil.rmtree(target.path, ignore_errors=True)
    written = str(((read_yaml(source.config_file) or {}).get("run") or {}).get("dir") or source.path)
    target.write_config(_renamed(source.config_file.read_text(encoding="utf-8"), written, name))
    target.write_provenance(json.loads(_renamed(json.dumps(source.provenance(), ensure_ascii=False), written, name)))
    last = max(steps, default=0)
    target.append_metrics([_thinned(line, line["step"] == last) for line in metrics if line["step"] in steps])
    with suppress(NotRecorded):
        _record_statistics(source.statistics("validation"), steps, target)
    for folder in COPIED:
        for file in (source.path / folder).glob("*.json"):
            (target.path / folder).mkdir(exist_ok=True)
            content = _without_units(json.loads(file.read_text(encoding="utf-8")))
            text = json.dumps(_rounded(content), ensure_ascii=False, separators=(",", ":"))
            (target.path / folder / file.name).write_text(text + "\n", encoding="utf-8")
    target.finish(summary)
    return sum(file.stat().st_size for file in target.path.rglob("*") if file.is_file())


def _without_units(content: Any) -> Any:
    """Of a probe's edits only the change of loss; anything else as it is."""
    if not isinstance(content, dict):
        return content
    return {
        side: found | {"edits": {key: each and {"change": each["change"]} for key, each in found["edits"].items()}}
        if isinstance(found, dict) and "edits" in found
        else found
        for side, found in content.items()
    }


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def _kept_steps(steps: list[int]) -> set[int]:
    places = np.linspace(0, len(steps) - 1, min(VALIDATIONS, len(steps))).round().astype(int)
    return {steps[place] for place in places}


def _renamed(text: str, written: str, name: str) -> str:
    return text.replace(written, name).replace(f"{Path.cwd()}/", "")


def _thinned(line: dict[str, Any], whole: bool) -> Any:
    kept = {k: v for k, v in line.items() if k in OF_METRICS or (whole and k.startswith("validation/"))}
    return _rounded(kept)


def _record_statistics(found: Statistics, steps: set[int], target: RunFolder) -> None:
    last = found.steps == found.steps.max()
    earlier = np.isin(found.steps, list(steps)) & ~last
    for rows, names in ((earlier, found.arrays.keys() & set(OF_STATISTICS)), (last, found.arrays.keys())):
        if rows.any() and names:
            arrays = {name: found.arrays[name][rows] for name in sorted(names)}
            target.append_statistics("validation", Statistics(found.steps[rows], arrays, found.sites))
