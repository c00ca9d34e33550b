"""Runs the probes of a model one after the other, each once: a finished one is in the results and not run again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sinks.errors import UserError
from sinks.observe.detection import Decode, Detection
from sinks.probes import removals
from sinks.probes.attention import AttentionSide, calibrate_attention
from sinks.probes.cuts import EDITS as CUTS
from sinks.probes.effects import ATTENTION, RESIDUAL, Units, role
from sinks.probes.places import AttentionPlace, NormPlace, Places
from sinks.probes.residual import ALL, EACH, SINK, Residual, calibrate, places_of, residual
from sinks.probes.scorer import Logits, Scorer
from sinks.progress import live
from sinks.stats.bootstrap import interval

POSITIONS = 8  # parts of a row of which the loss is reported apart
Side = Literal["residual", "attention", "both"]
ATTENTION_EDITS = (*removals.EDITS, removals.LEARNED, removals.GATE_MEAN, removals.GATE_ONE)
EDITS = (*CUTS, *ATTENTION_EDITS)


@dataclass(frozen=True)
class Options:
    """What is probed, and how.

    Args:
        side: residual, attention or both.
        where: norm sites: "all", "blocks", "each", kinds of norms, names or patterns.
        layers: attention layers: "all", "each", names or patterns.
        edits: by name, of both sides.
        tokens: on which those of the residual side act.
        threshold: score from which on a dimension is a sink of a site.
        dimensions: in place of those that reach the threshold: the same at every site, or by site.
        from_layer: the first block that is edited.
        sinks: keys that count as sinks: detected, first or own.
        controls: number of random controls of the residual side; on the attention side any number but 0 stands for one
            of each kind.
        clamp: limit, in RMS of the other dimensions.
        batch_size: rows at a time.
        seed: of random controls and of the bootstrap.
    """

    side: Side = "both"
    where: Sequence[str] = (ALL,)
    layers: Sequence[str] = (ALL,)
    edits: Sequence[str] = EDITS
    tokens: Sequence[str] = ("ordinary", "all")
    threshold: float = 10.0
    dimensions: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    from_layer: int = 0
    sinks: str = "detected"
    controls: int = 1
    clamp: float = 8.0
    batch_size: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Text:
    """What a model is probed on.

    Args:
        logits: of the model.
        rows: token ids to score [N, T + 1].
        calibration: other token ids to read [M, T].
        units: of the rows, which the bootstrap draws.
        decode: token id -> its text.
    """

    logits: Logits
    rows: Tensor
    calibration: Tensor
    units: Units
    decode: Decode


@dataclass(frozen=True)
class Job:
    """One edit to score.

    Args:
        key: what names it in the results.
        start: the first block that it touches.
        edited: the edit, in force inside the `with` block.
    """

    key: str
    start: int
    edited: Callable[[], AbstractContextManager[None]]


class Results(dict[str, Any]):
    """What has been measured, by side; passed to `save` after every edit.

    Args:
        content: of an earlier, interrupted probe; empty if there is none.
        save: writes the results.
    """

    def __init__(self, content: dict[str, Any], save: Callable[[dict[str, Any]], None] = lambda content: None) -> None:
        super().__init__(content)
        self._save = save

    def put(self, side: str, name: str, value: Any) -> None:
        """Add a result of a side."""
        self.setdefault(side, {})[name] = value
        self._save(self)

    def edits(self, side: str) -> dict[str, Any]:
        """By key, the edits of a side that are done."""
        return self.setdefault(side, {}).setdefault("edits", {})


def probe(places: Places, text: Text, options: Options, results: Results, progress: bool = False) -> None:
    """Measure what is not in the results yet.

    Args:
        places: of the model.
        text: to score, and to calibrate on.
        options: what is probed.
        results: to add to.
        progress: whether to show a line on a terminal, with the time left.

    Raises:
        UserError: if a site or layer is unknown, or one that is named has no sink.
    """
    for side, known, run in (("residual", CUTS, probe_residual), ("attention", ATTENTION_EDITS, probe_attention)):
        if options.side == "both" or options.side == side:
            chosen = [edit for edit in options.edits if edit in known]
            if options.side == "both" and side == "attention" and not places.attention:
                continue
            if chosen:
                run(places, text, replace(options, edits=chosen), results, progress)
            elif options.side == side:
                raise UserError(f"edit is {', '.join(options.edits)}, none of the {side} side: give {', '.join(known)}")


def dimensions_of_series(places: Places, text: Text, options: Options) -> tuple[dict[str, list[int]], list[str]]:
    """The sink dimensions of every norm site with which a series of checkpoints is probed.

    Args:
        places: of the last checkpoint's model.
        text: to calibrate on.
        options: what is probed.

    Returns:
        By name those that reach the threshold; where none does, the one with the largest mean |h_j|. And the names of
        these sites.
    """
    moments = calibrate(places.norms, lambda: _run(text, options.batch_size))
    found = {name: own.sink_dimensions(options.threshold) for name, own in moments.items()}
    return (
        {name: own or [int(moments[name].scores.argmax())] for name, own in found.items()},
        [name for name, own in found.items() if not own],
    )


# -- the residual side ---------------------------------------------------------------------------------------------


def probe_residual(places: Places, text: Text, options: Options, results: Results, progress: bool) -> None:
    """Edits of sink dimensions; see `sinks.probes.cuts`."""
    moments = calibrate(places.norms, lambda: _run(text, options.batch_size))
    found = residual(
        places.norms, moments, options.threshold, options.dimensions, options.controls, options.seed, options.clamp
    )
    groups = list(_norm_groups(found, options))
    results.put("residual", "sites", {norm.name: _described(found, norm) for norm in places.norms})
    jobs: list[Job] = []
    for name, norms in groups:
        sites = [norm for norm in norms if norm.name in found.dimensions[SINK]]
        results.edits("residual").update({} if sites else {f"{name}|none": None})
        for tokens in options.tokens if sites else ():
            for edit in options.edits:
                for of in found.dimensions:
                    jobs.append(_norm_job(found, name, sites, tokens, edit, of))
    _run_jobs("residual", jobs, places, text, options, results, progress)
    names = [(f"{name}|{tokens}", CUTS) for name, _ in groups for tokens in options.tokens]
    _add_roles("residual", names, [str(i) for i in range(options.controls)], RESIDUAL, text, options, results)


def _norm_groups(found: Residual, options: Options) -> Iterator[tuple[str, list[NormPlace]]]:
    for where in options.where:
        if where == EACH:
            yield from ((norm.name, [norm]) for norm in found.norms if norm.layer >= options.from_layer)
            continue
        norms = places_of(where, found.norms, options.from_layer)
        if where != ALL and len(found.without_sink(norms)) == len(norms):
            best = max(norms, key=lambda norm: found.moments[norm.name].scores.max())
            raise UserError(
                f"{where} has no sink dimension: the largest score is {found.moments[best.name].scores.max():.3g}, at "
                f"{best.name}, but must be at least {options.threshold:g}: give --threshold less, or --dimensions"
            )
        yield where if not options.from_layer else f"{where} from {options.from_layer}", norms


def _norm_job(found: Residual, name: str, norms: list[NormPlace], tokens: str, edit: str, of: str) -> Job:
    key, start = f"{name}|{tokens}|{edit}|{of}", min(norm.layer for norm in norms)
    return Job(key, start, lambda: found.edited(edit, norms, tokens, of))


def _described(found: Residual, norm: NormPlace) -> dict[str, Any]:
    scores, chosen = found.moments[norm.name].scores, found.dimensions
    return {
        "score": scores.max().item(),
        "dimensions": {of: own.get(norm.name, []) for of, own in chosen.items()},
        "scores": [scores[j].item() for j in chosen[SINK].get(norm.name, [])],
        "calibration_tokens": found.moments[norm.name].count,
    }


# -- the attention side --------------------------------------------------------------------------------------------


def probe_attention(places: Places, text: Text, options: Options, results: Results, progress: bool) -> None:
    """Edits of attention to sinks, of learned sinks and of output gates; see `sinks.probes.removals`."""
    if not places.attention:
        raise UserError("the model has no layer with attention weights to edit: give --side residual")
    controls = removals.CONTROLS if options.controls else ()
    calibrations = calibrate_attention(
        places.attention, options.sinks, lambda: _run(text, options.batch_size), options.seed, controls
    )
    side = AttentionSide(places.attention, options.sinks, calibrations, options.seed)
    groups = list(_layer_groups(places.attention, options))
    results.put("attention", "layers", {layer.name: _described_layer(side, layer) for layer in places.attention})
    detections: dict[str, Detection] = {}
    jobs: list[Job] = []
    for name, layers in groups:
        possible: set[str] = set()
        if any(_has_sink(side, layer) for layer in layers):
            possible |= removals.EDITS.keys()
        if any(calibrations[layer.name].mean_learned_mass.max() > 0 for layer in layers):
            possible.add(removals.LEARNED)
        if any(layer.gated for layer in layers):
            possible |= {removals.GATE_MEAN, removals.GATE_ONE}
        edits = [
            (edit, control)
            for edit in options.edits
            if edit in possible
            for control in (None, *(controls if edit in removals.EDITS else ()))
        ]
        results.edits("attention").update({} if edits else {f"{name}|none": None})
        for edit, control in edits:
            jobs.append(_layer_job(side, name, layers, edit, control, detections))
    _run_jobs("attention", jobs, places, text, options, results, progress, side, detections)
    names = [(f"{name}|{options.sinks}", removals.EDITS) for name, _ in groups]
    _add_roles("attention", names, [removals.RANDOM], ATTENTION, text, options, results)


def _layer_groups(layers: Sequence[AttentionPlace], options: Options) -> Iterator[tuple[str, list[AttentionPlace]]]:
    for where in options.layers:
        if where == EACH:
            yield from ((layer.name, [layer]) for layer in layers if layer.layer >= options.from_layer)
        else:
            name = where if not options.from_layer else f"{where} from {options.from_layer}"
            yield name, places_of(where, layers, options.from_layer)


def _has_sink(side: AttentionSide, layer: AttentionPlace) -> bool:
    queries = side.calibrations[layer.name].queries
    return queries is not None and bool(queries.any())


def _layer_job(
    side: AttentionSide,
    name: str,
    layers: list[AttentionPlace],
    edit: str,
    control: str | None,
    detections: dict[str, Detection],
) -> Job:
    key, start = f"{name}|{side.which}|{edit}|{control or SINK}", min(layer.layer for layer in layers)

    def edited() -> AbstractContextManager[None]:
        detection = detections[key] = Detection()
        return side.edited(edit, layers, control, detection)

    return Job(key, start, edited)


def _described_layer(side: AttentionSide, layer: AttentionPlace) -> dict[str, Any]:
    own = side.calibrations[layer.name]
    assert own.queries is not None
    return {
        "mean_mass": own.mean_mass().tolist(),
        "queries": own.queries.tolist(),
        "learned_mass": own.mean_learned_mass.tolist(),
        "how": [own.how(head) for head in sorted(own.ratios)],
    }


# -- both ----------------------------------------------------------------------------------------------------------


def _run(text: Text, batch_size: int) -> None:
    for batch in text.calibration.split(batch_size):
        text.logits(batch)


def _run_jobs(
    name: str,
    jobs: Sequence[Job],
    places: Places,
    text: Text,
    options: Options,
    results: Results,
    progress: bool,
    side: AttentionSide | None = None,
    detections: dict[str, Detection] | None = None,
) -> None:
    """Score the model as it is and under each edit that has no result yet."""
    missing = [job for job in jobs if job.key not in results.edits(name)]
    if not missing:
        return
    batches = text.rows.split(options.batch_size)
    detecting = Detection()

    def watch(batch: int) -> None:
        advance(len(batches[batch]))
        if side is not None:
            side.batch = batch
            detecting.start_batch(batches[batch][:, :-1])

    total = len(text.rows) * (1 + len(missing))
    with live(f"probing the {name} side", total, shown=progress) as advance:
        with side.finding(detecting) if side is not None else nullcontext():
            scorer = Scorer(
                text.logits, places.blocks, text.rows, options.batch_size, [job.start for job in missing], watch
            )
        results.put(name, "loss", scorer.base.mean().item())
        results.put(name, "loss_by_position", _by_position(scorer.base))
        if side is not None:
            results.put(name, "sinks", _sinks(detecting, text.decode))
        for job in missing:
            edited = job.edited()
            if detections is not None:
                detecting = detections[job.key]
            with edited:
                losses = scorer.losses(job.start)
            sums = text.units.sums(losses - scorer.base)
            found: dict[str, Any] = {
                "loss": losses.mean().item(),
                "change": interval(sums, text.units.sizes, options.seed),
                "sums": sums.tolist(),
                "loss_by_position": _by_position(losses),
            }
            if detections is not None:
                found["sinks_afterward"] = _sinks(detecting, text.decode)
            results.put(name, "edits", results.edits(name) | {job.key: found})


def _by_position(losses: Tensor) -> list[float]:
    """Mean loss of up to eight equal parts of the rows [N, T], first to last."""
    means = losses.mean(0)
    return [part.mean().item() for part in means.tensor_split(min(POSITIONS, len(means)))]


def _sinks(detection: Detection, decode: Decode) -> dict[str, Any] | None:
    """Where the sinks are: fractions, and the most common positions and tokens."""
    found = detection.results(decode).get("sinks")
    return found and {
        name: found[name] for name in ("with_sink", "with_first", "count", "positions", "tokens", "layers")
    }


def _add_roles(
    side: str,
    names: Sequence[tuple[str, Any]],
    controls: Sequence[str],
    rule: dict[str, tuple[str, str | None]],
    text: Text,
    options: Options,
    results: Results,
) -> None:
    done = results.edits(side)
    roles: dict[str, Any] = dict(results[side].get("roles", {}))
    for name, edits in names:
        sums = {
            (edit, of): torch.tensor(done[key]["sums"], dtype=torch.float64)
            for edit in edits
            for of in (SINK, *controls)
            if (key := f"{name}|{edit}|{of}") in done
        }
        changes = {edit: own for (edit, of), own in sums.items() if of == SINK}
        random = {edit: [own for (e, of), own in sums.items() if e == edit and of != SINK] for edit in changes}
        found = role(rule, changes, random, text.units.sizes, options.seed)
        if found is not None:
            roles[name] = found
    results.put(side, "roles", roles)
