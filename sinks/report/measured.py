"""What `sinks probe`, `sinks quantize` and `sinks accuracy` wrote beside a run or an analysis."""

import math
from pathlib import Path
from typing import Any

from sinks.errors import UserError
from sinks.record.folder import from_json

PROBES, QUANTIZATION, ACCURACY = "probes", "quantization", "accuracy"  # folders
STEP = "step"  # names the checkpoint in a probe of a series of them
MASKED = "all|first|masked|sink"  # of attention on token 0, in all layers


def results(path: Path, kind: str) -> list[dict[str, Any]]:
    """The JSON files of a kind, by name.

    Args:
        path: of the folder that holds the kind's.
        kind: "probes", "quantization" or "accuracy".

    Raises:
        UserError: if one is damaged.
    """
    found = []
    for file in sorted((path / kind).glob("*.json")):
        try:
            content = from_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{file} is damaged: delete it, and measure again")
        found.append(content)
    return found


def masked_change(path: Path) -> float | None:
    """Change of loss in nats per token with token 0 masked in every layer and head; None if it was not measured.

    Of several measurements of a run, that on the most rows; earlier checkpoints do not count.
    """
    found = []
    for content in results(path, PROBES):
        if STEP in content:
            continue
        edit = ((content.get("attention") or {}).get("edits") or {}).get(MASKED) or {}
        change = (edit.get("change") or {}).get("mean")
        if change is not None and math.isfinite(change):
            found.append(((content.get("rows") or [0])[0], change))
    return max(found)[1] if found else None


def has_roles(path: Path, side: str) -> bool:
    """Whether a probe of the run named what its sinks do to the loss.

    Args:
        path: of the run's folder.
        side: residual or attention.
    """
    return any((content.get(side) or {}).get("roles") for content in results(path, PROBES))
