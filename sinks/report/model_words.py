"""What stands out in an analysis, in sentences made of its numbers."""

from itertools import groupby

import numpy as np

from sinks.report.analysis import Analysis, depth
from sinks.report.model_figures import gain_ratios
from sinks.stats.functional.attention import SINK_THRESHOLDS
from sinks.stats.functional.residual import SINK_CONSISTENCY, SINK_SCORE

HALF = 0.5  # of a head's attention
SUPPRESSED, AMPLIFIED = 0.5, 2.0  # gain at the sink dimension over the median gain


def what_stands_out(one: Analysis) -> list[str]:
    """Three to six sentences; what an analysis has no numbers for is not mentioned. Layers count from 0."""
    found = [_attention(one), _detected(one), _routes(one), _residual(one), _norms(one), _massive(one)]
    return [sentence for sentence in found if sentence]


def _attention(one: Analysis) -> str | None:
    mass = one.array("attention/first_token_mass")
    if mass is None:
        return None
    layer, head = np.unravel_index(int(np.nanargmax(mass)), mass.shape)
    mean, uniform = float(np.nanmean(mass)), one.scalars.get("attention/first_token_mass_uniform")
    beside = f", {brief(mean / uniform)} times what uniform attention would give" if uniform else ""
    place = f"{one.depths('attention')[1][layer]:g}"
    above = _percent(float((mass > SINK_THRESHOLDS[0]).mean()))
    return (
        f"Heads give token 0 a mean attention of {mean:.2f}{beside}; {above} of them more than "
        f"{SINK_THRESHOLDS[0]}, and head {head} of layer {place} the most, {mass[layer, head]:.2f}."
    )


def _detected(one: Analysis) -> str | None:
    sinks = one.detection.get("sinks")
    if not sinks:
        return None
    threshold = one.detection["epsilon"]
    if not sinks["with_sink"]:
        return (
            f"No key receives a mean attention above {threshold} in any head: by detection there is no attention sink."
        )
    positions = sinks["positions"]
    elsewhere = [entry for entry in positions if entry["position"] != 0]
    first = sinks["with_first"] / sinks["with_sink"]
    births = max(sinks["layers"], key=lambda layer: layer["begins"])
    text = (
        f"Sought at any position, {_percent(sinks['with_sink'])} of heads and rows have a sink, {_percent(first)} of "
        f"these at position 0; most sink keys begin in layer {depth(births['site'] + '.', 0):g}"
    )
    if elsewhere:
        text += f", and the most common other position is {elsewhere[0]['position']}"
        text += f" ({_percent(elsewhere[0]['count'] / sinks['count'])} of all sinks)"
    return text + "."


def _routes(one: Analysis) -> str | None:
    weight = one.array("attention/effective_weight")
    if weight is None:
        return None
    words = {
        "lost_first": "at token 0", "lost_own": "at the query's own token", "lost_other": "at other tokens",
        "missing": "to mass without a value", "lost_learned": "at a learned value", "closed": "to the gate",
    }  # fmt: skip
    means = {name: float(np.nanmean(a)) for name in words if (a := one.array(f"attention/{name}")) is not None}
    largest = sorted((name for name, mean in means.items() if mean >= 0.005), key=lambda name: -means[name])
    lost = f"; {', '.join(f'{means[name]:.2f} is lost {words[name]}' for name in largest[:3])}" if largest else ""
    return (
        f"On average a head uses {np.nanmean(weight):.2f} of its attention (the effective weight){lost}; "
        f"{_percent(float((weight < HALF).mean()))} of the heads use less than half."
    )


def sink_ranges(one: Analysis) -> list[tuple[int, float, float]]:
    """Residual sinks by depth: dimension, first and last place, of sites in a row with the same one."""
    scores, consistency = one.array("residual/sink_score"), one.array("residual/sink_consistency")
    mean_abs = one.array("residual/mean_abs")
    if scores is None or consistency is None or mean_abs is None:
        return []
    places = one.depths("residual")[1]
    order = np.argsort(places, kind="stable")
    sink = (scores >= SINK_SCORE) & (consistency >= SINK_CONSISTENCY)
    marked = [(int(mean_abs[i].argmax()) if sink[i] else None, float(places[i])) for i in order]
    runs = [(dimension, [place for _, place in run]) for dimension, run in groupby(marked, key=lambda pair: pair[0])]
    return [(dimension, run[0], run[-1]) for dimension, run in runs if dimension is not None]


def _residual(one: Analysis) -> str | None:
    scores = one.array("residual/sink_score")
    if scores is None:
        return None
    strongest = int(np.nanargmax(scores[1:])) + 1 if len(scores) > 1 else 0
    place = f"{one.depths('residual')[1][strongest]:g}"
    peak = f"R is largest at layer {place}, {brief(float(scores[strongest]))}"
    ranges = sink_ranges(one)
    if not ranges:
        return f"There is no residual sink of all tokens (R of at least {SINK_SCORE:g} in half of them): {peak}."
    longest = sorted(ranges, key=lambda run: run[1] - run[2])[:3]
    texts = [f"dimension {d} from layer {a:g} to {b:g}" if a < b else f"dimension {d} at layer {a:g}"
             for d, a, b in sorted(longest, key=lambda run: run[1])]  # fmt: skip
    more = f" and {len(ranges) - 3} shorter ranges" if len(ranges) > 3 else ""
    return f"The residual sink is {', '.join(texts)}{more}; {peak}."


def _norms(one: Analysis) -> str | None:
    ratios, scores = gain_ratios(one), one.array("residual/sink_score")
    if ratios is None or scores is None:
        return None
    parts = []
    for name, containing in {"attention": ".attention", "feed-forward": ".feed_forward"}.items():
        sites = one.depths("norm", containing)[0]
        sites = sites[(scores[sites] >= SINK_SCORE) & np.isfinite(ratios[sites])]
        if len(sites):
            middle = float(np.median(ratios[sites]))
            parts.append(f"norms before {name} {_effect(middle)} it (gain {brief(middle)} of the median)")
    return f"Where R is at least {SINK_SCORE:g}, {' and '.join(parts)}." if parts else None


def _effect(ratio: float) -> str:
    if ratio < SUPPRESSED:
        return "suppress"
    return "amplify" if ratio > AMPLIFIED else "hardly change"


def _massive(one: Analysis) -> str | None:
    largest = one.array("residual/max_abs")
    if largest is None:
        return None
    where = [int(np.nanargmax(largest[:, token])) for token in (0, 1)]
    places = [f"{one.depths('residual')[1][i]:g}" for i in where]
    text = (
        f"The largest |h| is {brief(float(largest[where[0], 0]))} at token 0 (layer {places[0]}) and "
        f"{brief(float(largest[where[1], 1]))} elsewhere (layer {places[1]})"
    )
    jaccard = one.detection.get("overlap", {}).get("jaccard")
    if jaccard is not None:
        text += f"; sink tokens and massive tokens overlap with a Jaccard index of {brief(jaccard)}"
    return text + "."


def brief(value: float) -> str:
    """Three significant digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}\u00a0%"
