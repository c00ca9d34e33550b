"""What `sinks probe` and `sinks quantize` measured, with intervals or ranges: of the variants of an ablation, or of one
run or model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sinks.report.ablation import Ablation
from sinks.report.causes import ROLES, scheme
from sinks.report.figures.style import COLORS, FAINT, INK, LEGEND, MARKERS, name_of, new_figure, styled
from sinks.report.measured import PROBES, QUANTIZATION, STEP, results
from sinks.stats.bootstrap import Interval

ROLE_COLORS = ("#777777", "#D55E00", "#56B4E9", "#0072B2")
SMALLEST = 1e-4  # nats: what is closer to zero is drawn on a linear axis

Places = dict[str, dict[str, list[Mapping[str, Any]]]]  # side and place -> row -> roles


def probed_places(measured: Iterable[tuple[str, Mapping[str, Any]]]) -> Places:
    """Where roles were measured, as `attention: all|first`, and what was found there.

    Args:
        measured: contents of the files of `sinks probe`, each with the name of its row.
    """
    found: Places = {}
    for name, content in measured:
        for side in ("attention", "residual"):
            for place, role in ((content.get(side) or {}).get("roles") or {}).items():
                if role and role.get("effects"):
                    found.setdefault(f"{side}: {place}", {}).setdefault(name, []).append(role)
    return found


def probes_of(source: Ablation | Path, over_training: bool = False) -> list[tuple[str, Mapping[str, Any]]]:
    """What was probed, with names: of the variants of an ablation, or of one folder.

    Args:
        source: the ablation, or the folder that holds `probes/`.
        over_training: whether checkpoints of a series are meant, or the ends of runs.
    """
    return [
        (f"{name}, step {content[STEP]}" if over_training else name, content)
        for name, content in sorted(_of(source, PROBES), key=lambda each: each[1].get(STEP, 0) if over_training else 0)
        if (STEP in content) is over_training
    ]


def _of(source: Ablation | Path, kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Path):
        return [(source.name, content) for content in results(source, kind)]
    return [
        (name_of(variant, 60), content)
        for variant in source.variants
        for run in variant.runs
        for content in results(run.folder.path, kind)
    ]


@styled
def roles(rows: Mapping[str, list[Mapping[str, Any]]]) -> Figure | None:
    """What the loss owes to the sinks, by role: means over seeds, with the range, or the 95 % interval of one run.

    Args:
        rows: of one place, see `probed_places`.
    """
    if not rows:
        return None
    figure, axes = new_figure(1.3 + 0.5 * len(rows))
    axis, places = axes[0], np.arange(len(rows))[::-1].astype(float)
    for n, (role, color) in enumerate(zip(ROLES, ROLE_COLORS, strict=True)):
        effects = [[r["effects"][role] for r in entries if r["effects"].get(role)] for entries in rows.values()]
        middle = np.array([np.mean([e["mean"] for e in each]) if each else np.nan for each in effects])
        ends = np.array([_ends(each) for each in effects])
        at = places + 0.3 - 0.2 * n
        error = np.abs(ends.T - middle)
        axis.barh(at, middle, height=0.19, color=color, label=role, xerr=error, error_kw={"lw": 0.9, "ecolor": INK})
    axis.axvline(0, color=FAINT, linewidth=0.9)
    axis.set_yticks(places, list(rows))
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("change of loss beyond that of a random control (nats per token)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, **LEGEND)
    return figure


def _ends(effects: list[Interval]) -> tuple[float, float]:
    """The range over seeds, or the interval of one run."""
    if not effects:
        return np.nan, np.nan
    if len(effects) == 1:
        low, high = effects[0]["low"], effects[0]["high"]
        return (np.nan if low is None else low), (np.nan if high is None else high)
    means = [effect["mean"] for effect in effects]
    return min(means), max(means)


def quantized(source: Ablation | Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Changes of loss by number format, scheme and name, a value for each run.

    Args:
        source: the ablation, or the folder that holds `quantization/`.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, content in _of(source, QUANTIZATION):
        change = (content.get("quantized") or {}).get("change")
        if change:
            by_scheme = found.setdefault(str(content.get("scheme")), {})
            by_scheme.setdefault(scheme(dict(content)), {}).setdefault(name, []).append(float(change["mean"]))
    return found


def quantization_of_one(changes: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> Figure | None:
    """Change of loss of one run or model under each scheme.

    Args:
        changes: see `quantized`; of each scheme the first name counts.
    """
    schemes = [pair for by_scheme in changes.values() for pair in by_scheme.items()]
    return quantization({"change of loss": {each: next(iter(by_name.values())) for each, by_name in schemes}})


@styled
def quantization(changes: Mapping[str, Mapping[str, list[float]]]) -> Figure | None:
    """Change of loss of each row: means over seeds, with the range; a marker for each scheme.

    Args:
        changes: by scheme and row.
    """
    names = list(dict.fromkeys(name for by_name in changes.values() for name in by_name))
    if not names:
        return None
    figure, axes = new_figure(1.3 + (0.28 if len(changes) == 1 else 0.36) * len(names))
    axis, places = axes[0], np.arange(len(names))[::-1].astype(float)
    lowest = np.inf
    for n, (each, by_name) in enumerate(changes.items()):
        known = [i for i, name in enumerate(names) if name in by_name]
        values = [by_name[names[i]] for i in known]
        middle = np.array([np.mean(v) for v in values])
        ends = np.array([(min(v), max(v)) for v in values]).T
        lowest = min(lowest, float(ends.min()))
        at = places[known] + 0.3 - 0.6 * (n + 0.5) / len(changes)
        axis.errorbar(middle, at, xerr=np.abs(ends - middle), linestyle="none", marker=MARKERS[n % len(MARKERS)],
                      color=COLORS["unknown"][n % len(COLORS["unknown"])], markersize=6, elinewidth=1,
                      label=each)  # fmt: skip
    axis.set_xscale("log" if lowest > 0 else "symlog", **({} if lowest > 0 else {"linthresh": SMALLEST}))
    if lowest <= 0:
        axis.axvline(0, color=FAINT, linewidth=0.9)
    axis.set_yticks(places, names)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlabel("change of loss (nats per token" + ("; linear near zero)" if lowest <= 0 else ")"))
    if len(changes) > 1:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, **LEGEND)
    return figure
