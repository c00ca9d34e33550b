"""`sinks quantize`: what simulated quantization costs a run or a pretrained model."""

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sinks.cli.analyze import collected
from sinks.cli.parser import run_function
from sinks.cli.subjects import ABOUT, digest, each_model, identity, load_subject
from sinks.errors import UserError, require
from sinks.quantize.rounding import Method
from sinks.quantize.schemes import Only, Reach
from sinks.quantize.transforms import Name

# What is shown of a result, and what of a breakdown.
RESULTS = ("loss", "accuracy", "quantized", "folds")
BREAKDOWN = ("first_token_kept", "sink_tokens", "kinds_alone", "output_sqnr", "underflow", "destroyed")
REPEATED = ("scheme", "transform", "kind")
DEFAULT_TRANSFORM: list[Name] = ["none"]


def quantize(
    models: list[str] | None = None,
    *,
    scheme: list[str] | None = None,
    transform: list[Name] | None = None,
    activation_scale: Reach = "row",
    only: Only = "both",
    weight_rounding: Method = "nearest",
    kind: list[str] | None = None,
    gates: Literal["keep", "quantize"] = "keep",
    kv: Literal["keep", "quantize"] = "keep",
    text: str | None = None,
    rows: int = 8,
    tokens: int = 512,
    calibration_rows: int = 8,
    bos: str = "auto",
    batch_size: int = 4,
    seed: int = 0,
    breakdown: bool = True,
    device: str = "auto",
    out: Path | None = None,
    cache: Path = Path("data"),
    trust_remote_code: bool = False,
    progress: bool = True,
) -> None:
    """Measure what simulated quantization costs a model: loss, accuracy and the noise of every linear map.

    Args:
        models: runs, folders of runs, "smollm2", folders of transformers models, .gguf files, names on the hub.
        scheme: w8a8, w4a16, int4, fp8, mxfp4 or nvfp4; may be repeated; none given: nvfp4.
        transform: of activations and weights before rounding; may be repeated.
        activation_scale: over what a scale of activations reaches: a token (row), a whole tensor, or a constant that
            calibration finds (static).
        only: whether weights, activations or both are quantized.
        weight_rounding: to the nearest numbers; with the scales that minimize the squared error (clip); or so that the
            outputs on calibration text stay close (gptq).
        kind: of inputs that are quantized, may be repeated; none given: all but the gate path.
        gates: whether the gate path, of output gates and norm gates, is quantized as well.
        kv: whether keys and values are rounded to the format of activations, as attention receives them.
        text: for a pretrained model, as for sinks analyze; a run is measured on its validation set.
        rows: number of rows that are scored.
        tokens: length of a row of text.
        calibration_rows: number of rows after these on which transforms and constant scales are calibrated.
        bos: what a row of text begins with, as for sinks analyze.
        batch_size: rows at a time.
        seed: of the bootstrap over rows.
        breakdown: whether more is measured than the change of loss and accuracy with all quantized: each kind of input
            alone, sink tokens kept, the noise of every linear map; this takes nine tenths of the time.
        device: cpu, cuda, or auto: a GPU if there is one.
        out: holds one JSON file per scheme and transform in MODEL/quantization/; by default they are in quantization/
            of the run folder, and of a pretrained model in runs/analysis/MODEL/quantization/, as sinks analyze writes
            there.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that a model brings may run.
        progress: show a progress line on a terminal.
    """
    for name, value in (("rows", rows), ("calibration_rows", calibration_rows), ("batch_size", batch_size)):
        require(name, value, at_least=1, remedy="give e.g. 8")
    from sinks.quantize.inputs import GATE, KINDS, left_out
    from sinks.quantize.schemes import scheme_of
    from sinks.quantize.transforms import require_rotations

    for given in kind or ():
        if given not in KINDS:
            other = ", or --gates=quantize" if given == GATE else ""
            raise UserError(f"kind is {given!r}, which is none: give one of {', '.join(KINDS)}{other}")
    kinds = [*(kind or KINDS), *([GATE] if gates == "quantize" else [])]
    schemes = {name: scheme_of(name, activation_scale, only) for name in scheme or ["nvfp4"]}
    if weight_rounding != "nearest" and only == "activations":
        raise UserError(
            f"weight_rounding is {weight_rounding}, but --only=activations rounds no weights: leave one out"
        )
    for name, numbers in schemes.items():
        if kv == "quantize" and numbers.activations is None:
            raise UserError(f"scheme {name} has no format of activations, which keys and values get: leave --kv out")

    from sinks.quantize.measure import Options, measure, measure_original, rows_read
    from sinks.quantize.progress import counted
    from sinks.record.folder import to_json, write_atomically
    from sinks.record.provenance import provenance

    def measure_model(model: str, alone: bool) -> str:
        subject, folder = load_subject(
            model, "quantization", text, rows, calibration_rows, tokens, bos, device, out, cache, trust_remote_code
        )
        inputs = subject.inputs()
        if gates == "quantize" and not any(each.kind == GATE for each in inputs):
            raise UserError(f"{model} has no gate path that could be quantized: leave --gates out")
        if kv == "quantize" and subject.rounding_kv is None:
            raise UserError(f"{model} has no attention whose keys and values could be quantized: leave --kv out")
        for changed in transform or DEFAULT_TRANSFORM:
            require_rotations(changed, [each for each in inputs if each.kind in kinds])
        skipped = left_out(inputs, subject.blocks)
        if skipped and alone:
            print(f"left as they are, being no plain nn.Linear or not called: the weights of {', '.join(skipped)}")
        own, original, unchanged = identity(subject), None, 0
        asked = list(product(schemes.items(), transform or DEFAULT_TRANSFORM))
        for (name, numbers), changed in asked:
            settings = {
                "scheme": name, "transform": changed, "activation_scale": activation_scale, "only": only,
                "weight_rounding": weight_rounding, "kinds": kinds, "kv": kv, "batch_size": batch_size, "seed": seed,
            }  # fmt: skip
            file = folder / f"{name}-{changed}-{digest(own | settings)}.json"
            content = read_result(file, own | settings) if file.is_file() else {}
            note = " (unchanged)" if content and (not breakdown or "kinds_alone" in content) else ""
            if note:
                unchanged += 1
            else:
                wanted = Options(
                    numbers, changed, weight_rounding, kinds, batch_size, seed, kv == "quantize", breakdown
                )
                total = rows_read(subject, wanted, original is None)
                with counted(subject, f"{name}, {changed}", total, progress) as followed:
                    original = original or measure_original(followed, wanted)
                    measured = measure(followed, wanted, original)
                content = own | settings | measured | {"provenance": provenance("transformers")}
                write_atomically(file, to_json(content, indent=2) + "\n")
            if alone:
                show(file, content, note)
        return f"{folder}: {len(asked) - unchanged} measured, {unchanged} unchanged"

    each_model(models, "quantize", measure_model)


def read_result(file: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement that was stored.

    Args:
        file: of it.
        wanted: identity and settings that it was made with.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"holds {type(content).__name__}")
        whole = (*RESULTS, *BREAKDOWN) if any(key in content for key in BREAKDOWN) else RESULTS
        lost = [key for key in (*wanted, *whole) if key not in content]
        if lost:
            raise ValueError(f"has no {lost[0]}")
    except ValueError as error:  # that of JSON and of UTF-8 are such
        raise UserError(f"{file} is damaged ({error}): delete it to measure again") from None
    return content


def show(file: Path, content: Mapping[str, Any], note: str = "") -> None:
    """Print what was measured."""
    from sinks.stats.bootstrap import as_text

    print(f"{file}{note}")
    print(f"  loss  {content['loss']:.4f} nats per token, accuracy {content['accuracy']:.4f}")
    results = {"all": content["quantized"]}
    if "kinds_alone" in content:
        results |= {"first token kept": content["first_token_kept"]}
        sinks = content["sink_tokens"]
        if sinks is not None:
            print(
                f"  sinks {sinks['fraction']:.2%} of the tokens, {sinks['first_token_fraction']:.2%} of the first ones"
            )
            results["sink tokens kept"] = sinks["kept"]
        results |= content["kinds_alone"] | {"destroyed ones kept": content["destroyed"]["rescued"]}
    for label, result in results.items():
        if result is not None:
            change, accuracy = result["change"], result["accuracy_change"]["mean"]
            print(f"  {label:<19}  {as_text(change, 4):<26}  accuracy {accuracy:+.4f}", flush=True)
    if "kinds_alone" in content:
        _show_noise(content)
    for kind, fold in content["folds"].items():
        free = {True: "free in deployment", False: "not free in deployment", None: "may cost something in deployment"}
        print(f"  {kind:<19}  {content['transform']} is {free[fold['exact']]}: {fold['how']}")


def _show_noise(content: Mapping[str, Any]) -> None:
    for kind, ratio in content["output_sqnr"].items():
        print(f"  {kind:<19}  {'no noise' if ratio is None else f'{ratio:.2f} dB of the output over its noise'}")
    for kind, fractions in content["underflow"].items():
        parts = [f"{fraction:.2%} of its {name}" for name, fraction in fractions.items() if fraction]
        if parts:
            print(f"  {kind:<19}  {' and '.join(parts)} become zero")
    destroyed = content["destroyed"]
    if destroyed["inputs"]:
        print(f"  below {destroyed['below_db']:.0f} dB: {', '.join(destroyed['inputs'])}")


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks quantize`."""
    run_function(quantize, command, collected(arguments, REPEATED), several=("models", ABOUT))
