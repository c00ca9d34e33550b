"""First-token mass of every layer and head over training, as maps with a step slider.

Where no script runs, they show the last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from sinks.report.ablation import Run, Variant
from sinks.report.figures.style import name_of
from sinks.report.run_statistics import FIRST_TOKEN_MASS_BY_HEAD, statistics_with
from sinks.report.svg import MAP

MOST_STEPS = 20
MOST_COLUMNS = 12  # of a map: seeds side by side where they fit, else the first
NUMBERED = 6  # columns up to which cells show their number
CELL, GAP, LEFT, BOTTOM = 34.0, 6.0, 26.0, 30.0
PALETTE = [to_hex(MAP(i / 32)) for i in range(33)]


@dataclass(frozen=True)
class StepMap:
    """Maps of one variant.

    Args:
        variant: its name.
        title: its name in figures.
        svg: the map at the last step.
        values: [steps, cells], cells by layer, then seed, then head; None where there is no number.
        texts: [cells] what is said of a cell before its value.
    """

    variant: str
    title: str
    svg: str
    values: list[list[float | None]]
    texts: list[str]


def step_maps(variants: Sequence[Variant]) -> dict[str, Any] | None:
    """What the page's slider shows; None if no run recorded it.

    Args:
        variants: in the order of the page.

    Returns:
        `steps` [S], `palette`, and `maps`, a `StepMap` per variant.
    """
    known = {v.name: _recorded(v.shown) for v in variants}
    steps = sorted({step for runs in known.values() for _, by_step in runs for step in by_step})
    if not steps:
        return None
    chosen = [
        steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int))
    ]
    maps = [_map(v, known[v.name], chosen) for v in variants if known[v.name]]
    return {"steps": chosen, "palette": PALETTE, "maps": maps}


def _recorded(runs: Sequence[Run]) -> list[tuple[str, dict[int, np.ndarray]]]:
    """Seed and by step the mass [layers, heads], of as many runs as fit side by side."""
    found: list[tuple[str, dict[int, np.ndarray]]] = []
    for run in runs:
        statistics = statistics_with(run, FIRST_TOKEN_MASS_BY_HEAD)
        if statistics is None:
            continue
        mass = statistics.by_layer(FIRST_TOKEN_MASS_BY_HEAD)
        columns = sum(next(iter(by_step.values())).shape[1] for _, by_step in found) + mass.shape[2]
        if found and columns > MOST_COLUMNS:
            break
        found.append((run.seed_name, dict(zip(map(int, statistics.steps), mass, strict=True))))
    return found


def _map(variant: Variant, runs: list[tuple[str, dict[int, np.ndarray]]], steps: Sequence[int]) -> StepMap:
    frames = [np.concatenate([_until(by_step, step) for _, by_step in runs], axis=1) for step in steps]
    layers, columns = frames[-1].shape
    of_column = [(seed, head) for seed, by_step in runs for head in range(next(iter(by_step.values())).shape[1])]
    places, x = [], LEFT
    for n, (seed, _) in enumerate(of_column):
        x += GAP if n and of_column[n - 1][0] != seed else 0
        places.append(x)
        x += CELL
    parts, texts = [], []
    height = layers * CELL
    for layer in range(layers):
        y = height - (layer + 1) * CELL
        parts.append(_label(LEFT - 6, y + CELL / 2 + 4, str(layer), "end"))
        for column, (seed, head) in enumerate(of_column):
            value = float(frames[-1][layer, column])
            texts.append(f"layer {layer}, head {head}, seed {seed}")
            parts.append(_cell(places[column], y, value, texts[-1], columns <= NUMBERED))
    for n, (seed, _) in enumerate(runs):
        inside = [places[i] for i, (of, _) in enumerate(of_column) if of == seed]
        parts.append(_label((inside[0] + inside[-1] + CELL) / 2, height + 16, f"{'seed ' * (not n)}{seed}", "middle"))
    svg = (
        f'<svg class="map" role="img" aria-label="{escape(variant.short)}: first-token mass by layer and head" '
        f'viewBox="0 0 {x + 4:g} {height + BOTTOM:g}" style="max-width:{x + 4:g}px">{"".join(parts)}</svg>'
    )
    rounded = [[round(float(v), 3) if np.isfinite(v) else None for v in frame.ravel()] for frame in frames]
    return StepMap(variant.name, name_of(variant), svg, rounded, texts)


def _until(by_step: dict[int, np.ndarray], step: int) -> np.ndarray:
    """The last map recorded up to a step; before the first one there is none."""
    before = [s for s in by_step if s <= step]
    return by_step[max(before)] if before else np.full_like(next(iter(by_step.values())), np.nan)


def _cell(x: float, y: float, value: float, text: str, numbered: bool) -> str:
    known = np.isfinite(value)
    fill = PALETTE[round(min(max(value, 0.0), 1.0) * (len(PALETTE) - 1))] if known else "none"
    said = f"{text}: {value:.3f}" if known else f"{text}: no number"
    number = (
        f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2 + 4:g}" class="{"onlight" if value > 0.5 else "ondark"}">'
        if numbered
        else ""
    )
    number += f"{value:.2f}</text>" if numbered and known else "</text>" if numbered else ""
    return (
        f'<g class="cell"><rect x="{x:g}" y="{y:g}" width="{CELL - 1:g}" height="{CELL - 1:g}" fill="{fill}"/>{number}'
        f"<title>{escape(said)}</title></g>"
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
