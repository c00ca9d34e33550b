"""The files of a stage: one JSON and one Markdown, replaced atomically whenever the result grows."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinks.record.folder import from_json, to_json, write_atomically
from sinks.record.provenance import provenance

# The commit on a machine without a checkout.
COMMIT_VARIABLE = "SINKS_COMMIT"
COMMIT_FILE = Path(__file__).parents[2] / "COMMIT"


@dataclass(frozen=True)
class Results:
    """Reader and writer of one stage's files.

    Args:
        folder: of the report.
        file: name without suffix.
    """

    folder: Path
    file: str

    @property
    def json(self) -> Path:
        return self.folder / f"{self.file}.json"

    @property
    def markdown(self) -> Path:
        return self.folder / f"{self.file}.md"

    def read(self) -> dict[str, Any] | None:
        return from_json(self.json.read_text(encoding="utf-8")) if self.json.is_file() else None

    def write(self, record: dict[str, Any], text: str) -> None:
        """Markdown first: if the JSON is "done", both exist."""
        write_atomically(self.markdown, text.rstrip() + "\n")
        write_atomically(self.json, to_json(record, indent=1) + "\n")


def origin() -> dict[str, Any]:
    """Provenance and available GPUs; the commit from the environment or a file COMMIT if not from git."""
    import torch

    found = provenance()
    if found["commit"] is None:
        named = os.environ.get(COMMIT_VARIABLE)
        if named is None and COMMIT_FILE.is_file():
            named = COMMIT_FILE.read_text(encoding="utf-8").strip()
        found["commit"] = named
    return found | {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda, "hip": torch.version.hip}
