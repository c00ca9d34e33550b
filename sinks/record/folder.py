"""The run folder: the contract between a run and everyone who reads it later, without a live model.

config.yaml        the fully resolved configuration
provenance.json    commit, versions, device, command, fingerprints
metrics.jsonl      one line per logged step, append-only
statistics/        arrays over steps: safetensors, one file per flush
checkpoints/       Lightning's
validation/        one JSON per checkpoint, data and options of `sinks validate`
analysis.json      of a pretrained model, which has no checkpoints: model, text, and the sinks that were detected
summary.json       final numbers; written last and atomically: its presence means "finished"
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinks.errors import UserError
from sinks.record.atomic import remove_leftovers, replacing, with_filename
from sinks.record.checkpoints import LAST, checkpoint_step, is_complete
from sinks.record.formats import FORMAT, format_of, upgrade
from sinks.record.yaml_file import read_yaml

# Entries of provenance.json that readers take apart, and their kinds.
PROVENANCE = {"commit": str, "versions": dict, "command": list, "config_fingerprint": str}


class NotRecorded(UserError):
    """A run folder lacks what is asked for, which is no damage."""


@dataclass(frozen=True)
class Statistics:
    """Arrays over the logged steps of one stage, joined from every flush.

    Args:
        steps: [S] optimizer steps.
        arrays: name -> [S, ...], e.g. `attention/first_token_mass` [S, layers, heads].
        sites: axis 1 of the arrays of a group, by name, e.g. `residual` -> site names.
    """

    steps: np.ndarray
    arrays: dict[str, np.ndarray]
    sites: dict[str, list[str]]


def join(parts: list[Statistics]) -> Statistics:
    """Flushes of one stage along the step axis; NaN where one lacks an array that another has."""
    shapes = {name: array.shape[1:] for part in parts for name, array in part.arrays.items()}

    def of(part: Statistics, name: str) -> np.ndarray:
        if name in part.arrays:
            return part.arrays[name]
        return np.full((len(part.steps), *shapes[name]), np.nan, dtype=np.float32)

    arrays = {name: np.concatenate([of(part, name) for part in parts]) for name in shapes}
    return Statistics(np.concatenate([part.steps for part in parts]), arrays, parts[-1].sites)


def write_atomically(path: Path, text: str) -> None:
    """Write at a temporary path, then rename: a reader never sees a partial file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities are written as the strings "nan", "inf", "-inf", never dropped."""

    def clean(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return str(item)
        if isinstance(item, Mapping):
            return {str(k): clean(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(v) for v in item]
        return item

    return json.dumps(clean(value), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """Inverse of `to_json`."""
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

    def restore(item: Any) -> Any:
        if isinstance(item, str):
            return special.get(item, item)
        if isinstance(item, dict):
            return {k: restore(v) for k, v in item.items()}
        if isinstance(item, list):
            return [restore(v) for v in item]
        return item

    return restore(json.loads(text))


class RunFolder:
    """Reads and writes one run's folder, which need not exist before the first write."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_link(self) -> Path:
        """The link to the newest checkpoint, which a copy of the folder may lack, or hold as a file."""
        return self.checkpoints / LAST

    @property
    def last_checkpoint(self) -> Path | None:
        """The complete checkpoint that the run resumes from; None if there is none.

        It is the newest by name. Only without any such is it `last.ckpt`, as another callback writes it: after a copy
        without links or a restored backup, that file may be older.
        """
        complete = self.complete_checkpoints()
        if complete:
            return complete[max(complete)]
        return self.last_link if is_complete(self.last_link) else None

    def complete_checkpoints(self) -> dict[int, Path]:
        """Complete checkpoints by the step that their names state, in order."""
        numbered = {step: path for path in self.checkpoint_files() if (step := checkpoint_step(path)) is not None}
        return {step: numbered[step] for step in sorted(numbered) if is_complete(numbered[step])}

    def checkpoint_files(self) -> list[Path]:
        """Checkpoints of any name, complete or not."""
        return sorted(self.checkpoints.glob("[!.]*.ckpt"))

    @property
    def has_provenance(self) -> bool:
        return (self.path / "provenance.json").is_file()

    @property
    def begun(self) -> bool:
        """Whether there is anything of a run here that another one could mix with."""
        return (self.path / "metrics.jsonl").is_file() or bool(self.checkpoint_files())

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    @property
    def analyzed(self) -> bool:
        """Whether it holds the analysis of a pretrained model, which was not trained here."""
        return (self.path / "analysis.json").is_file()

    # -- writing ------------------------------------------------------------------------------------------------

    def write_config(self, text: str) -> None:
        write_atomically(self.config_file, text)

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        write_atomically(self.path / "provenance.json", to_json({"format": FORMAT, **provenance}, indent=2) + "\n")

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Append one JSON object per line to metrics.jsonl."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "metrics.jsonl"
        with with_filename(path), path.open("a", encoding="utf-8") as file:
            file.writelines(to_json(line) + "\n" for line in lines)

    def truncate_after(self, step: int) -> None:
        """Drop what was logged after `step`: called when a run resumes from a checkpoint of that step."""
        # All is read, and found whole, before anything is written.
        later = {file: _load(file) for file in self._statistics_files() if int(file.stem.split("-")[1]) > step}
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file():
            kept = [line for line in self.metrics() if line["step"] <= step]
            write_atomically(metrics, "".join(to_json(line) + "\n" for line in kept))
        for file, (arrays, metadata) in later.items():
            rows = {stage: arrays[f"{stage}/steps"] <= step for stage in _stages(arrays)}
            cut = {name: array[rows[name.split("/")[0]]] for name, array in arrays.items()}
            if any(kept.any() for kept in rows.values()):
                self._save_statistics(cut, metadata)
            file.unlink()  # after the kept rows are written; the names differ, as this one ends at a later step

    def append_statistics(self, stage: str, statistics: Statistics) -> None:
        """Write one flush of a stage ("train", "validation" or "analysis")."""
        arrays = {f"{stage}/{name}": array for name, array in statistics.arrays.items()}
        arrays[f"{stage}/steps"] = statistics.steps
        self._save_statistics(arrays, {"sites": json.dumps(statistics.sites)})

    def _save_statistics(self, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        from safetensors.numpy import save

        steps = np.concatenate([arrays[f"{stage}/steps"] for stage in _stages(arrays)])
        stage = "+".join(_stages(arrays))
        file = self.path / "statistics" / f"{int(steps.min()):08d}-{int(steps.max()):08d}-{stage}.safetensors"
        with replacing(file) as temporary:
            temporary.write_bytes(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata))

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a killed run."""
        for folder in (self.path, self.path / "statistics", self.checkpoints):
            remove_leftovers(folder)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: after this the run counts as finished."""
        write_atomically(self.path / "summary.json", to_json(summary, indent=2) + "\n")

    def write_validation(self, checkpoint: Path, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> Path:
        """Write a validation to a file of its own, unless the same result is stored already, which it replaces.

        Args:
            checkpoint: that was measured.
            result: numbers and fingerprints: their hash is part of the name.
            provenance: of the measurement.
        """
        digest = hashlib.sha256(to_json(result).encode()).hexdigest()[:8]
        file = self.path / "validation" / f"{checkpoint.stem}-{digest}.json"
        content = {"checkpoint": str(checkpoint), **result, **provenance}
        write_atomically(file, to_json(content, indent=2) + "\n")
        return file

    def write_analysis(self, content: Mapping[str, Any]) -> None:
        """Write analysis.json, of a model that was analyzed and not trained."""
        write_atomically(self.path / "analysis.json", to_json(content, indent=2) + "\n")

    # -- reading ------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise NotRecorded(
                f"{self.path} has no {name}: give a run folder, written by `sinks fit --run.dir {self.path}`"
            ) from None
        except UnicodeDecodeError as error:
            raise self._damaged(name, error) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = from_json(self._read(name))
        except (json.JSONDecodeError, RecursionError) as error:
            raise self._damaged(name, error) from None
        if not isinstance(content, dict):
            raise self._damaged(name, "no JSON object")
        return content

    def _damaged(self, name: str, reason: object) -> UserError:
        return UserError(
            f"{self.path / name} is damaged ({reason}): restore it, or choose another run folder and run it again"
        )

    @property
    def format(self) -> int:
        """Of the folder, validated; 1 where it carries no mark."""
        return format_of(self.provenance() if self.has_provenance else {}, self.path)

    def config(self) -> dict[str, Any]:
        """The resolved configuration, its options under their present names."""
        self._read("config.yaml")  # an error where there is none
        config = read_yaml(self.config_file)
        if not isinstance(config, dict):
            raise self._damaged("config.yaml", "no mapping")
        return upgrade(config) if self.format == 1 else config

    def provenance(self) -> dict[str, Any]:
        content = self._read_json("provenance.json")
        for key, kind in PROVENANCE.items():
            if content.get(key) is not None and not isinstance(content[key], kind):
                raise self._damaged("provenance.json", f"{key} is {content[key]!r}")
        return content

    def summary(self) -> dict[str, Any]:
        assert self.format  # rejects an unknown format
        return self._read_json("summary.json")

    def analysis(self) -> dict[str, Any]:
        """The content of analysis.json."""
        return self._read_json("analysis.json")

    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per logged step, in order of steps.

        A step written in two lines, because a checkpoint was taken between them, is joined; a last line truncated by a
        crash is dropped.

        Raises:
            UserError: if another line is damaged.
        """
        steps: dict[int, dict[str, Any]] = {}
        lines = self._read("metrics.jsonl").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                part = from_json(line)
                if not isinstance(part["step"], int) or any(isinstance(v, (str, list, dict)) for v in part.values()):
                    raise TypeError
                steps.setdefault(part["step"], {}).update(part)
            except (ValueError, TypeError, KeyError, RecursionError):
                if number == len(lines):
                    break
                raise self._damaged("metrics.jsonl", f"line {number} is no JSON object with a step") from None
        return list(steps.values())

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [S] and values [S] of one key of metrics.jsonl."""
        pairs = [(line["step"], line[key]) for line in self.metrics() if key in line]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)

    def _statistics_files(self) -> list[Path]:
        return sorted((self.path / "statistics").glob("*.safetensors"))

    def statistics(self, stage: str = "validation") -> Statistics:
        """Every flush of a stage ("train", "validation" or "analysis"), joined along the step axis."""
        parts: list[Statistics] = []
        for file in self._statistics_files():
            arrays, metadata = _load(file)
            if f"{stage}/steps" in arrays:
                named = {k.removeprefix(f"{stage}/"): v for k, v in arrays.items() if k.startswith(f"{stage}/")}
                parts.append(Statistics(named.pop("steps"), named, json.loads(metadata["sites"])))
        if not parts:
            raise NotRecorded(f"{self.path} has no {stage} statistics: train with the statistics callback on")
        return join(parts)


def _stages(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return sorted({name.split("/")[0] for name in arrays})


def _load(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of one flush.

    Raises:
        UserError: if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as handle:
            arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            metadata = handle.metadata() or {}
        json.loads(metadata["sites"])
        if any(len(array) != len(arrays[f"{name.split('/')[0]}/steps"]) for name, array in arrays.items()):
            raise ValueError("arrays of different lengths")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({' '.join(str(error).split())}): restore it, or remove it with the steps it holds"
        ) from None
    return arrays, metadata


def find_runs(root: str | os.PathLike[str]) -> list[RunFolder]:
    """Every run folder (with a config.yaml) at or below `root`, sorted by path."""
    return [RunFolder(file.parent) for file in sorted(Path(root).rglob("config.yaml"))]
