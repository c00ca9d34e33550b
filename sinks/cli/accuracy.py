"""`sinks accuracy`: small tasks on a run's validation set, or on a text, in percent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinks.cli.parser import run_function
from sinks.cli.subjects import ABOUT, digest, each_model, identity, load_subject
from sinks.errors import UserError, require


def accuracy(
    models: list[str] | None = None,
    *,
    rows: int = 96,
    choices: int = 4,
    continuation_tokens: int = 8,
    text: str | None = None,
    tokens: int = 512,
    bos: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    cache: Path = Path("data"),
    trust_remote_code: bool = False,
) -> None:
    """Measure accuracy on small tasks: next token, choice of a continuation, recall by distance, induction.

    Args:
        models: runs, folders of runs, "smollm2", folders of transformers models, .gguf files, names on the hub.
        rows: number of rows, of the validation set of a run, or of the text.
        choices: continuations among which a row's own is to be found.
        continuation_tokens: last tokens of a row, which are its continuation.
        text: for a pretrained model, as for sinks analyze.
        tokens: length of a row of text.
        bos: what a row of text begins with, as for sinks analyze.
        batch_size: rows at a time.
        seed: of the other continuations, the shuffled tokens and the bootstrap over rows.
        device: cpu, cuda, or auto: a GPU if there is one.
        out: holds the JSON file in MODEL/accuracy/; by default it is in accuracy/ of the run folder, and of a
            pretrained model in runs/analysis/MODEL/accuracy/.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that a model brings may run.
    """
    require("choices", choices, at_least=2, remedy="give e.g. 4")
    for name, value in (("rows", rows), ("continuation_tokens", continuation_tokens), ("batch_size", batch_size)):
        require(name, value, at_least=1, remedy="give e.g. 8")

    from sinks.probes.accuracy import measure
    from sinks.record.folder import from_json, to_json, write_atomically
    from sinks.record.provenance import provenance
    from sinks.report.measured import ACCURACY

    def measure_model(model: str, alone: bool) -> str:
        subject, folder = load_subject(
            model, ACCURACY, text, rows, 0, tokens, bos, device, out, cache, trust_remote_code
        )
        own = identity(subject) | {
            "choices": choices, "continuation_tokens": continuation_tokens, "batch_size": batch_size, "seed": seed,
        }  # fmt: skip
        file = folder / f"accuracy-{digest(own)}.json"
        note = " (unchanged)" if file.is_file() else ""
        if note:
            try:
                content = from_json(file.read_text(encoding="utf-8"))
                shown = lines(content)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{file} is damaged: delete it to measure again") from None
        else:
            found = measure(subject.logits, subject.rows, batch_size, choices, continuation_tokens, seed)
            content = own | found | {"provenance": provenance("transformers")}
            write_atomically(file, to_json(content, indent=2) + "\n")
            shown = lines(content)
        if alone:
            print("\n".join([f"{file}{note}", *shown]))
        return f"{file}{note}"

    each_model(models, "accuracy", measure_model)


def lines(content: Mapping[str, Any]) -> list[str]:
    """What was measured, as text."""
    from sinks.report.accuracy import named

    found = []
    for name, value in named(content).items():
        low, high = value["low"], value["high"]
        interval = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
        found.append(f"  {name:<34}  {value['mean']:5.1f} %{interval} of {value['count']:,}")
    return found


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks accuracy`."""
    run_function(accuracy, command, arguments, several=("models", ABOUT))
