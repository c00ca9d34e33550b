"""The run folder of an analyzed model, read for its page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinks.errors import UserError
from sinks.record import RunFolder
from sinks.record.folder import layer_of

STAGE = "analysis"


@dataclass(frozen=True)
class Analysis:
    """What one folder holds.

    Args:
        path: the folder.
        content: of analysis.json.
        scalars: by key (docs/statistics.md).
        arrays: name -> [sites, ...].
        sites: axis 0 of the arrays of a group, by name.
        provenance: of the folder.
    """

    path: Path
    content: dict[str, Any]
    scalars: dict[str, float]
    arrays: dict[str, np.ndarray]
    sites: dict[str, list[str]]
    provenance: dict[str, Any]

    @property
    def detection(self) -> dict[str, Any]:
        return self.content.get("detection") or {}

    def array(self, name: str) -> np.ndarray | None:
        """[sites, ...] if any of its values is a number."""
        found = self.arrays.get(name)
        return found if found is not None and np.isfinite(found).any() else None

    def depths(self, group: str, containing: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Indices of the sites of a group whose names contain a text, and where they are: see `depth`."""
        names = self.sites.get(group, [])
        layers = self.layers
        chosen = [i for i, name in enumerate(names) if containing in name]
        return np.array(chosen, dtype=int), np.array([depth(names[i], layers) for i in chosen])

    @property
    def layers(self) -> int:
        """Number of layers, counted over all sites."""
        names = [name for group in self.sites.values() for name in group]
        return 1 + max((number for name in names if (number := layer_of(name)) is not None), default=-1)


def depth(site: str, layers: int) -> float:
    """Of a site in layers: the block's number, and a half more behind its attention; the head comes last."""
    number = layer_of(site)
    if number is None:
        return float(layers)
    return number + (0.5 if ".feed_forward" in site else 0.0)


def read_analysis(path: Path) -> Analysis:
    """Read a finished analysis.

    Raises:
        UserError: if the folder is none, unfinished or damaged.
    """
    folder = RunFolder(path)
    if not folder.finished:
        raise UserError(f"{path} holds no finished analysis: run `sinks analyze` with --out there")
    assert folder.format  # rejects an unknown format
    statistics, metrics = folder.statistics(STAGE), folder.metrics()
    prefix = f"{STAGE}/"
    scalars = {k.removeprefix(prefix): float(v) for k, v in metrics[-1].items() if k.startswith(prefix)}
    content = folder.analysis()
    for part, keys in {"model": ("name",), "text": ("source", "rows", "tokens_per_row", "bos")}.items():
        if missing := [key for key in keys if not isinstance(content.get(part), dict) or key not in content[part]]:
            raise UserError(f"{path / 'analysis.json'} is damaged (no {part}.{missing[0]}): analyze the model again")
    arrays = {name: array[-1] for name, array in statistics.arrays.items()}
    return Analysis(path, content, scalars, arrays, statistics.sites, folder.provenance())


def names_of(analyses: list[Analysis]) -> list[str]:
    """A name for each: the model's, and what else tells it apart."""
    names = []
    for one in analyses:
        name, text = str(one.content["model"]["name"]), one.content["text"]
        others = [a for a in analyses if a is not one and str(a.content["model"]["name"]) == name]
        if any(a.content["text"]["source"] != text["source"] for a in others):
            name += f", {Path(str(text['source'])).name}"
        if any(a.content["text"]["bos"] != text["bos"] for a in others):
            name += f", {bos_of(one)}"
        names.append(name)
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def bos_of(one: Analysis) -> str:
    """How rows begin."""
    bos = one.content["text"]["bos"]
    return {None: "no BOS", "chat": "chat template"}.get(bos, f"BOS {bos}")
