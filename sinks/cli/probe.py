"""`sinks probe`: what a model's loss owes to its residual sinks and attention sinks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinks.cli.analyze import collected
from sinks.cli.parser import run_function
from sinks.cli.subjects import ABOUT, digest, each_model, identity, load_subject
from sinks.errors import UserError, require

if TYPE_CHECKING:
    from sinks.probes.places import Places
    from sinks.probes.probe import Options, Text
    from sinks.quantize.subject import Subject

REPEATED = ("where", "layers", "edit", "on")
Edit = Literal[
    "direct", "constant-direct", "denominator", "constant-denominator", "mean", "zero", "clamp", "value",
    "constant-contribution", "rescaling", "constant-rescaling", "masked", "learned-constant", "gate-mean", "gate-one",
]  # fmt: skip
Tokens = Literal["ordinary", "all", "later", "first", "massive"]


def probe(
    models: list[str] | None = None,
    *,
    side: Literal["residual", "attention", "both"] = "both",
    where: list[str] | None = None,
    layers: list[str] | None = None,
    from_layer: int = 0,
    edit: list[Edit] | None = None,
    on: list[Tokens] | None = None,
    threshold: float = 10.0,
    dimensions: list[int] | None = None,
    clamp: float = 8.0,
    controls: int = 1,
    sinks: Literal["detected", "first", "own"] = "detected",
    checkpoint: Literal["last", "all"] = "last",
    text: str | None = None,
    rows: int = 8,
    tokens: int = 512,
    calibration_rows: int = 4,
    bos: str = "auto",
    batch_size: int = 1,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    cache: Path = Path("data"),
    trust_remote_code: bool = False,
    progress: bool = True,
) -> None:
    """Measure what a model's loss owes to its sinks: each edit beside a random control, with intervals, and the role.

    Args:
        models: runs, folders of runs, "smollm2", folders of transformers models, .gguf files, names on the hub.
        side: sink dimensions of the residual stream, attention sinks, or both.
        where: norm sites, edited together: all, blocks (all but the head's), attention, feed_forward, head, a name or a
            pattern; or each, one at a time. May be repeated; none given: all.
        layers: attention layers: all together, each alone, a name or a pattern; may be repeated; none given: all.
        from_layer: the first block that is edited, on both sides.
        edit: of either side, may be repeated; none given: every one.
        on: tokens on which edits of the residual side act, may be repeated; none given: ordinary and all.
        threshold: mean |h_j| over the median of all dimensions, from which on j is a sink dimension of a site.
        dimensions: in place of those that reach the threshold, at every site.
        clamp: limit of the edit clamp, in RMS of the other dimensions.
        controls: number of random controls of the residual side; 0 also leaves out those of the attention side.
        sinks: keys that are attention sinks: those that detection finds, the first one, or a query's own token.
        checkpoint: of a run: the last one, or all that it kept, each with the sink dimensions of the last one, and with
            the largest where none reaches the threshold.
        text: for a pretrained model, as for sinks analyze; a run is probed on its validation set.
        rows: number of rows that are scored.
        tokens: length of a row of text.
        calibration_rows: number of rows after these that calibrate sink dimensions and means.
        bos: what a row of text begins with, as for sinks analyze.
        batch_size: rows at a time.
        seed: of the random controls and of the bootstrap.
        device: cpu, cuda, or auto: a GPU if there is one.
        out: holds the JSON file in MODEL/probes/; by default it is in probes/ of the run folder, and of a pretrained
            model in runs/analysis/MODEL/probes/, as sinks analyze writes there.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that a model brings may run.
        progress: show a progress line on a terminal.
    """
    for name, value in (("rows", rows), ("calibration_rows", calibration_rows), ("batch_size", batch_size)):
        require(name, value, at_least=1, remedy="give e.g. 8")
    require("threshold", threshold, above=0, remedy="give e.g. 10")
    require("clamp", clamp, above=0, remedy="give e.g. 8")
    require("controls", controls, at_least=0, remedy="give e.g. 1")
    require("from_layer", from_layer, at_least=0, remedy="give 0 for the first")
    if dimensions is not None and not dimensions:
        raise UserError("dimensions is empty: give at least one, or leave it out for those that reach --threshold")

    from sinks.probes.probe import Options, dimensions_of_series

    options = Options(
        side, where or ["all"], layers or ["all"], edit or list(Options.edits), on or list(Options.tokens), threshold,
        dimensions, from_layer, sinks, controls, clamp, batch_size, seed,
    )  # fmt: skip

    def load(model: str, of: Path | None = None) -> tuple["Subject", Path]:
        return load_subject(
            model, "probes", text, rows, calibration_rows, tokens, bos, device, out, cache, trust_remote_code, of
        )

    def measure_series(model: str, alone: bool) -> str:
        checkpoints = checkpoints_of(model)
        subject, folder = load(model)
        chosen = options
        if dimensions is None and side != "attention":
            found, without = dimensions_of_series(places_of(subject), text_of(subject), options)
            chosen = replace(options, dimensions=found)
            if without and alone:
                print(f"below the threshold of {threshold:g}, where the largest dimension counts: {', '.join(without)}")
        fresh = 0
        for step, path in checkpoints.items():
            _, unchanged = measure(load(model, path)[0], folder, chosen, progress, alone, step)
            fresh += not unchanged
        return f"{folder}: {fresh} of {len(checkpoints)} checkpoints measured"

    def measure_model(model: str, alone: bool) -> str:
        if checkpoint == "all":
            return measure_series(model, alone)
        file, unchanged = measure(*load(model), options, progress, alone)
        return f"{file}{' (unchanged)' if unchanged else ''}"

    each_model(models, "probe", measure_model)


def checkpoints_of(model: str) -> dict[int, Path]:
    """The complete checkpoints of a run, by step.

    Raises:
        UserError: if there is none.
    """
    from sinks.record import RunFolder

    found = RunFolder(model).complete_checkpoints()
    if not found:
        raise UserError(f"{model} has no complete checkpoint that names its step: leave --checkpoint out")
    return found


def measure(
    subject: "Subject",
    folder: Path,
    options: "Options",
    progress: bool,
    shown: bool,
    step: int | None = None,
) -> tuple[Path, bool]:
    """Probe a model and write what was found.

    Args:
        subject: the model and its text.
        folder: of the JSON file.
        options: what is probed.
        progress: whether to show a line on a terminal.
        shown: whether to print the results.
        step: of a checkpoint of a series.

    Returns:
        The file, and whether it had all of it already.
    """
    from sinks.probes.probe import Results
    from sinks.probes.probe import probe as run_probe
    from sinks.record.folder import to_json, write_atomically
    from sinks.record.provenance import provenance

    # Not what is asked for, but what its results depend on.
    depends = ("threshold", "dimensions", "clamp", "seed", "batch_size")
    own = identity(subject) | {name: getattr(options, name) for name in depends}
    own |= {} if step is None else {"step": step}
    file = folder / f"probe-{digest(own)}.json"
    known = earlier(file) if file.is_file() else {}
    before = measured_edits(known)
    places, found = places_of(subject), text_of(subject)
    header = own | {"units": found.units.name, "provenance": provenance("transformers")}

    def save(content: Mapping[str, Any]) -> None:
        write_atomically(file, to_json(dict(content), indent=2) + "\n")

    results = Results(header | known, save)
    run_probe(places, found, options, results, progress)
    if shown:
        show(file, results, options)
    return file, measured_edits(results) == before


def measured_edits(content: Mapping[str, Any]) -> int:
    """Number of edits in a probe's results, of both sides."""
    return sum(len(content.get(side, {}).get("edits", {})) for side in ("residual", "attention"))


def earlier(file: Path) -> dict[str, Any]:
    """What a probe has written.

    Raises:
        UserError: if it is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): restore or remove it") from None
    return content


def places_of(subject: "Subject") -> "Places":
    """Where a run's or a transformers model can be edited."""
    from sinks.families import CausalLM

    if isinstance(subject.model, CausalLM):
        from sinks.probes.own_places import own_places

        assert subject.model.decoder is not None
        return own_places(subject.model.decoder)
    from transformers import PreTrainedModel

    from sinks.probes.hooked_places import hooked_places

    assert isinstance(subject.model, PreTrainedModel)
    return hooked_places(subject.model)


def text_of(subject: "Subject") -> "Text":
    """What a subject is probed on: documents, where a run's data marks where they begin, else windows."""
    from sinks.data.tokenizer import BOS_ID
    from sinks.families import CausalLM
    from sinks.probes.effects import documents, windows
    from sinks.probes.probe import Text
    from sinks.record import RunFolder

    rows = subject.rows.cpu()
    data = RunFolder(subject.name).config()["data"] if isinstance(subject.model, CausalLM) else {}
    marked = data.get("init_args", {}).get("bos") == "document"
    units = documents(rows, BOS_ID) if marked else windows(len(rows), rows.shape[1] - 1)
    return Text(subject.logits, subject.rows, subject.calibration, units, str)


def show(file: Path, content: Mapping[str, Any], options: "Options") -> None:
    """Print what was measured, of the sides that were asked for."""
    print(file if "step" not in content else f"step {content['step']}: {file}")
    for side in ("residual", "attention"):
        if options.side in (side, "both") and side in content:
            # Without a sink nothing was scored.
            loss = content[side].get("loss")
            what = "" if loss is None else f" loss {loss:.4f} nats per token; change [95 % over {content['units']}]"
            print(f"{side} side:{what}")
            _show_side(content[side])


def _show_side(found: Mapping[str, Any]) -> None:
    from sinks.stats.bootstrap import as_text

    rows: dict[str, dict[str, Any]] = {}
    for key, result in found["edits"].items():
        name, _, of = key.rpartition("|")
        rows.setdefault(name, {})[of] = result
    width = max(map(len, rows), default=0)
    for name, results in rows.items():
        if "none" in results:
            print(f"  {name:<{width}}  none")
            continue
        change = results["sink"]["change"]
        others = "".join(f"  {of} {result['change']['mean']:+.4f}" for of, result in results.items() if of != "sink")
        print(f"  {name:<{width}}  {as_text(change, 4)}{others}")
        after = results["sink"].get("sinks_afterward")
        if after and after["positions"]:
            at = ", ".join(str(place["position"]) for place in after["positions"][:3])
            print(f"  {'':<{width}}  sinks afterward in {after['with_sink']:.2f} of heads and rows, most at {at}")
    for name, result in found.get("roles", {}).items():
        print(f"  role of {name}: {', '.join(result['named'])}")
    hows = [how["how"] for layer in found.get("layers", {}).values() for how in layer["how"]]
    if hows:
        counts = ", ".join(f"{hows.count(how)} {how}" for how in ("no-op", "broadcast", "between"))
        print(f"  sinks of {len(hows)} heads: {counts}")


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks probe`."""
    run_function(probe, command, collected(arguments, REPEATED), several=("models", ABOUT))
