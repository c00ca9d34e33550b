"""The figures of a model's page: each a panel per analysis, all panels of a figure on the same axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sinks.report.analysis import Analysis
from sinks.report.svg import Axis, Series, axis_over, heat_map, line_chart

SUBLAYERS = {"attention": ".attention", "feed-forward": ".feed_forward"}
SAMPLE_RANGE = 1e4  # of the colors: medians are far below the largest, and differ little
LAYER, FEED_FORWARD = "layer", "feed-forward sites are half a layer further"


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Args:
        name: its anchor.
        title: its heading.
        caption: what it shows and how to read it.
        panels: SVG of each analysis, None where it has no numbers for it.
    """

    name: str
    title: str
    caption: str
    panels: list[str | None]


def first_token_map(analyses: Sequence[Analysis]) -> Figure:
    scale = Axis("mean attention to token 0 (fraction)", 0.0, 1.0)
    return Figure("first-token-mass", "Where attention goes to the first token",
                  "Mean attention of each head to token 0, over all queries but the first.",
                  [_by_head(one, "attention/first_token_mass", "First-token mass by layer and head", scale)
                   for one in analyses])  # fmt: skip


def effective_weight_map(analyses: Sequence[Analysis]) -> Figure:
    name = "attention/effective_weight"
    known = [array for one in analyses if (array := one.array(name)) is not None]
    scale = Axis("effective weight", 0.0, max([1.0, *(float(np.nanmax(array)) for array in known)]))
    return Figure("effective-weight", "How much of its attention each head uses",
                  "Mean over queries of the gate's gain times the sum of weights times the values' norms over their "
                  "median: about 1 where a head works, near 0 where it is off, whether by a sink, by small values "
                  "elsewhere, by a learned sink, or by a gate.",
                  [_by_head(one, name, "Effective weight by layer and head", scale) for one in analyses])  # fmt: skip


def _by_head(one: Analysis, name: str, title: str, scale: Axis) -> str | None:
    """An array [layers, heads] as a map."""
    values = one.array(name)
    if values is None:
        return None
    layers = _layer_names(one)
    heads = [str(head) for head in range(values.shape[1])]
    height = float(np.clip(420 / len(values), 8, 22))
    return heat_map(title, values, heads, layers, ("head", LAYER), scale,
                    lambda row, column: f"layer {layers[row]}, head {column}", height)  # fmt: skip


def largest_values(analyses: Sequence[Analysis]) -> Figure:
    def lines(one: Analysis) -> list[Series]:
        largest = one.array("residual/max_abs")
        if largest is None:
            return []
        sites, x = one.depths("residual")
        names = [site.removesuffix(".input") for site in one.sites["residual"]]
        massive = {found["site"]: found for found in one.detection.get("massive", [])}
        found = {"token 0": largest[sites, 0]}
        if massive:
            for name, key in {"massive tokens, not token 0": "max_massive", "all other tokens": "max_rest"}.items():
                found[name] = np.array([massive.get(names[i], {}).get(key, np.nan) for i in sites])
        else:
            found["all other tokens"] = largest[sites, 1]
        order = np.argsort(x, kind="stable")
        return [Series(name, x[order], y[order]) for name, y in found.items() if np.isfinite(y).any()]

    return _lines("largest-values", "The largest values of the residual stream",
                  "Largest |h| that each norm reads, on a logarithmic axis. Massive: above 100 and above 1000 times "
                  f"the row's median |h|. {FEED_FORWARD.capitalize()}, and the norm before the head comes last.",
                  analyses, lines, "largest |h|", log=True)  # fmt: skip


def by_dimension_and_token(analyses: Sequence[Analysis]) -> Figure:
    samples = [one.detection.get("sample") for one in analyses]
    known = [np.array(sample["values"], dtype=float) for sample in samples if sample]
    largest = axis_over("", known, log=True).high
    scale = Axis("|h|; what is smaller has the color of the lower end", largest / SAMPLE_RANGE, largest, log=True)

    def panel(one: Analysis) -> str | None:
        sample = one.detection.get("sample")
        if not sample:
            return None
        tokens = [f"{i} {_visible(token)}" for i, token in enumerate(sample["tokens"])]
        dimensions = [str(dimension) for dimension in sample["dimensions"]]
        return heat_map(f"|h| by dimension and token at {sample['site']}", np.array(sample["values"], dtype=float),
                        dimensions, tokens, ("dimension", f"token, at {sample['site']}"), scale,
                        lambda row, column: f"token {tokens[row]}, dimension {dimensions[column]}")  # fmt: skip

    return Figure("by-dimension-and-token", "The residual stream by dimension and token",
                  "|h| at the site of the strongest residual sink, for the first tokens of one row and the dimensions "
                  "that are largest at token 0 or on average at the others. A bright row is a massive token; a bright "
                  "column is a residual sink.", [panel(one) for one in analyses])  # fmt: skip


def gains(analyses: Sequence[Analysis]) -> Figure:
    def lines(one: Analysis) -> list[Series]:
        ratios = gain_ratios(one)
        if ratios is None:
            return []
        found = []
        for name, containing in SUBLAYERS.items():
            sites, x = one.depths("norm", containing)
            if len(sites) and np.isfinite(ratios[sites]).any():
                found.append(Series(f"norm before {name}", x, ratios[sites]))
        heads, x = one.depths("norm", "head")
        if len(heads) and np.isfinite(ratios[heads]).any():
            found.append(Series("norm before the head", x, ratios[heads]))
        return found

    return _lines("gains", "What the norms do to the sink dimension",
                  "|gain| at the site's largest dimension over the median |gain| of its norm. Below the dashed line at "
                  "1 the norm suppresses that dimension.", analyses, lines, "gain over median gain", log=True,
                  reference=1.0)  # fmt: skip


def gain_ratios(one: Analysis) -> np.ndarray | None:
    """|gain| at each norm site's largest dimension over the median |gain| [sites]; NaN where it has no gain."""
    gain, mean_abs = one.array("norm/gain"), one.array("residual/mean_abs")
    if gain is None or mean_abs is None or len(gain) != len(mean_abs):
        return None
    gain, found = np.abs(gain), np.full(len(gain), np.nan)
    for i in np.flatnonzero(np.isfinite(gain).all(1) & np.isfinite(mean_abs).all(1)):
        middle = np.sort(gain[i])[(gain.shape[1] - 1) // 2]  # the lower median, as norm/gain_at_sink
        found[i] = gain[i, mean_abs[i].argmax()] / middle if middle > 0 else np.nan
    return found


def updates(analyses: Sequence[Analysis]) -> Figure:
    return _lines("updates", "What each sublayer adds",
                  "Norm of a sublayer's output over the norm of the residual stream that it is added to, mean over "
                  "tokens. Far above 1 it overwrites the stream; this is where massive activations are written.",
                  analyses, lambda one: _of_updates(one, "ratio"), "update over residual", log=True,
                  reference=1.0)  # fmt: skip


def update_directions(analyses: Sequence[Analysis]) -> Figure:
    return _lines("update-directions", "Along or against the stream",
                  "Cosine of a sublayer's output and the residual stream that it is added to. Near -1 it erases what "
                  "is there.", analyses, lambda one: _of_updates(one, "cosine"), "cosine", reference=0.0,
                  fixed=Axis("cosine", -1.0, 1.0))  # fmt: skip


def _of_updates(one: Analysis, statistic: str) -> list[Series]:
    """A statistic of the updates, of each kind of sublayer and token."""
    found = []
    for suffix, tokens in {"": "other tokens", "_first_token": "token 0"}.items():
        values = one.array(f"update/{statistic}{suffix}")
        for name, containing in SUBLAYERS.items():
            sites, x = one.depths("update", containing)
            if values is not None and len(sites) and np.isfinite(values[sites]).any():
                found.append(Series(f"{name}, {tokens}", x, values[sites]))
    return found


def value_norms(analyses: Sequence[Analysis]) -> Figure:
    def lines(one: Analysis) -> list[Series]:
        ratio = one.array("attention/value_norm_ratio")
        if ratio is None:
            return []
        sites, x = one.depths("attention")
        shown = np.isfinite(ratio).any(1)
        sites, x = sites[shown[sites]], x[shown[sites]]
        low, mean, high = (f(ratio[sites], axis=1) for f in (np.nanmin, np.nanmean, np.nanmax))
        return [Series("mean over heads", x, mean, low, high)]

    return _lines("value-norms", "Values of the first token",
                  "Norm of token 0's value vector over the median of the others: the mean over key-value heads, with "
                  "the range over heads. Far below 1 the sink takes attention and adds little.",
                  analyses, lines, "value norm ratio", log=True, reference=1.0)  # fmt: skip


FIGURES = (
    first_token_map, effective_weight_map, largest_values, by_dimension_and_token, gains, updates, update_directions,
    value_norms,
)  # fmt: skip


def _lines(
    name: str,
    title: str,
    caption: str,
    analyses: Sequence[Analysis],
    lines: Callable[[Analysis], list[Series]],
    label: str,
    log: bool = False,
    reference: float | None = None,
    fixed: Axis | None = None,
) -> Figure:
    """A panel of lines over the layers for each analysis."""
    return lines_over_layers(name, title, caption, [lines(one) for one in analyses], label, log, reference, fixed)


def lines_over_layers(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[list[Series]],
    label: str,
    log: bool = False,
    reference: float | None = None,
    fixed: Axis | None = None,
) -> Figure:
    """Panels of lines over the layers, on the same axes.

    Args:
        name, title, caption: of the figure.
        panels: lines of each analysis; none where it has no numbers.
        label: of the vertical axis.
        log: whether that is logarithmic.
        reference: value that is marked by a dashed line.
        fixed: vertical axis in place of one over the values.
    """
    every = [series for one in panels for series in one]
    values = [v for s in every for v in (s.y, s.low, s.high) if v is not None]
    ends = [] if reference is None or fixed is not None else [np.array([reference])]
    y = fixed or axis_over(label, [*values, *ends], log=log)
    last = max((float(s.x.max()) for s in every), default=1.0)
    x = Axis(LAYER, -0.02 * max(last, 1.0), 1.02 * max(last, 1.0), whole=True)
    return Figure(name, title, caption, [line_chart(title, one, x, y, reference) if one else None for one in panels])


def _layer_names(one: Analysis) -> list[str]:
    return [f"{place:g}" for place in one.depths("attention")[1]]


def _visible(token: object, width: int = 10) -> str:
    """A token in a few visible letters; `inf` and `nan` come out of the JSON as numbers."""
    shown = str(token).replace("\n", "\\n").replace("\t", "\\t").strip() or "(space)"
    return shown if len(shown) <= width else shown[: width - 2] + ".."
