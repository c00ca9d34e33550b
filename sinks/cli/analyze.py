"""`sinks analyze`: the sinks of pretrained models, each text in a run folder, and all on one page."""

import json
import re
from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sinks.cli.parser import run_function
from sinks.errors import UserError, require

if TYPE_CHECKING:
    import torch

    from sinks.record import RunFolder

REPEATED = ("text", "bos")
PAGE = "model.html"
ANALYSES = Path("runs/analysis")


def analyze(
    models: list[str] | None = None,
    *,
    text: list[str] | None = None,
    rows: int = 16,
    tokens: int = 512,
    bos: list[str] | None = None,
    batch_size: int = 2,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    stream: bool = False,
    out: Path = ANALYSES,
    cache: Path = Path("data"),
    trust_remote_code: bool = False,
    progress: bool = True,
) -> None:
    """Find the attention sinks and residual sinks of pretrained models: a run folder for each text, and one page.

    Args:
        models: "smollm2", folders, .gguf files and names on the Hugging Face hub.
        text: a file or folder as `sinks prepare` takes it, may be repeated; none: the source files of Python's
            standard library.
        rows: number of rows.
        tokens: length of a row.
        bos: what every row begins with, may be repeated: what the tokenizer itself puts before a text (auto, the
            default), nothing (none), the start of a chat with the model's template (chat), or an id.
        batch_size: rows at a time.
        device: cpu, cuda, or auto: a GPU if there is one.
        dtype: of the weights.
        stream: read the weights of a block from disk when it runs, for a model larger than memory.
        out: folder of the page, and of the run folders in it: MODEL/TEXT-bos-BOS.
        cache: folder that holds converted .gguf files.
        trust_remote_code: whether code that a model brings may run.
        progress: show a progress line on a terminal.
    """
    if not models:
        raise UserError("what is to be analyzed is missing: sinks analyze MODEL, e.g. sinks analyze smollm2")
    require("batch_size", batch_size, at_least=1, remedy="give e.g. 4")
    texts: list[str | None] = [*text] if text else [None]
    policies = bos or ["auto"]
    places = _places(models, texts, policies, out)

    from sinks.interop.extra import require_extra

    require_extra("transformers")
    from logging import ERROR, getLogger

    import torch
    from transformers.utils import logging

    from sinks.interop.analyze import analyze as analyze_rows
    from sinks.interop.load import load_pretrained
    from sinks.interop.rows import read_rows
    from sinks.report.model_page import write_model_page

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("accelerate").setLevel(ERROR)
    chosen = device_of(device)
    for name in models:
        pretrained = load_pretrained(name, chosen, getattr(torch, dtype), trust_remote_code, cache, stream)
        for source, policy in product(texts, policies):
            found = read_rows(pretrained, source, rows, tokens, policy)
            folder, unchanged = analyze_rows(pretrained, found, places[name, source, policy], batch_size, progress)
            _print(folder, len(found.tokens), rows, unchanged)
    write_model_page(list(places.values()), out / PAGE)
    print(f"page: {out / PAGE}")


def _places(
    models: list[str], texts: list[str | None], policies: list[str], out: Path
) -> dict[tuple[str, str | None, str], Path]:
    """The run folder of each analysis, checked to be different."""
    from sinks.data.corpus import find_corpus

    places: dict[tuple[str, str | None, str], Path] = {}
    for name, source, policy in product(models, texts, policies):
        corpus = find_corpus(None if source is None else [source]).name
        place = out / slug(name) / f"{corpus}-bos-{slug(policy)}"
        if place in places.values():
            raise UserError(f"two analyses would be written to {place}: give each a command with an --out of its own")
        places[name, source, policy] = place
    return places


def slug(name: str) -> str:
    """The last part of a path or hub name, as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).resolve().name).strip("-.")[:100] or "model"


def device_of(name: str) -> "torch.device":
    """The device of an option: a GPU if there is one for auto.

    Raises:
        UserError: if it cannot be used.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device is {name!r}, which cannot be used ({reason}): give cpu, cuda or auto") from None


def _print(folder: "RunFolder", rows: int, asked: int, unchanged: bool) -> None:
    numbers, text = folder.summary(), folder.analysis()["text"]
    fewer = f", all that the text has of {asked}" if rows < asked else ""
    print(f"{folder.path}{' (unchanged)' if unchanged else ''}")
    print(f"  text              {text['source']}: {rows} rows of {text['tokens_per_row']} tokens{fewer}")
    for label, key, note in (
        ("loss", "loss", "nats per token"),
        (
            "first-token mass",
            "attention/first_token_mass",
            "uniform attention {attention/first_token_mass_uniform:.3g}",
        ),
        ("sink heads", "attention/sink_ratio_0.3", "of heads and rows, with a mass above 0.3, query 0 included"),
        ("residual sink R", "residual/sink_score", "consistency {residual/sink_consistency:.3g}"),
        ("largest |h|", "residual/max_abs", "token 0 {residual/max_abs_first_token:.5g}"),
    ):
        if key in numbers:
            print(f"  {label:<16}  {numbers[key]:<8.4g}  {note.format_map(numbers)}")


def collected(arguments: list[str], names: Collection[str]) -> list[str]:
    """Arguments in which an option that is given several times is one list.

    Args:
        arguments: of a command.
        names: of the options.
    """
    lists: dict[str, list[str]] = {}
    others = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in names:
            lists.setdefault(name, []).append(value if equals else next(remaining, ""))
        else:
            others.append(argument)
    return [*others, *(f"--{name}={json.dumps(values)}" for name, values in lists.items())]


def main(command: str, arguments: list[str]) -> None:
    """Run `sinks analyze`."""
    about = "smollm2, folders, .gguf files, names on the Hugging Face hub"
    run_function(analyze, command, collected(arguments, REPEATED), several=("models", about))
