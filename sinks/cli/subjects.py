"""What `sinks probe`, `quantize` and `accuracy` measure: runs and pretrained models, one after the other."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinks.cli.analyze import ANALYSES, device_of, slug
from sinks.errors import UserError

if TYPE_CHECKING:
    from sinks.quantize.subject import Subject

ABOUT = "runs, folders of runs, smollm2, folders of transformers models, .gguf files, names on the hub"


def each_model(models: Sequence[str] | None, command: str, measure: Callable[[str, bool], str]) -> None:
    """Measure models in turn; of several, print a line each, of an error as well, which does not end the others.

    Args:
        models: as given; a folder of runs stands for those that are finished.
        command: name after `sinks`.
        measure: measures one, told whether it is the only one, and returns a line about it.

    Raises:
        UserError: if there is no model, or the only one cannot be measured.
        SystemExit: with code 2, after the last one, if any of several cannot be measured.
    """
    models = [name for model in models or () for name in _runs_in(model)]
    if not models:
        raise UserError(f"what is to be measured is missing: give a run or a model, e.g. sinks {command} smollm2")
    code = 0
    for number, model in enumerate(models, 1):
        try:
            line = measure(model, len(models) == 1)
        except UserError as error:
            if len(models) == 1:
                raise
            text = " ".join(str(error).splitlines())
            print(f"sinks: error: {'' if model in text else f'{model}: '}{text}", file=sys.stderr)
            code = 2
        else:
            if len(models) > 1:
                print(f"{number} of {len(models)}  {line}", flush=True)
    if code:
        raise SystemExit(code)


def _runs_in(model: str) -> list[str]:
    """The finished runs below a folder that is neither a run nor a model itself, else what is given."""
    from sinks.record import RunFolder, find_runs

    path = Path(model)
    if RunFolder(path).has_provenance or (path / "config.json").is_file() or not path.is_dir():
        return [model]
    runs = [run for run in find_runs(path) if not run.analyzed]
    finished = [str(run.path) for run in runs if run.finished]
    if runs and not finished:
        raise UserError(f"{model} has {len(runs)} runs, but none is finished: finish one, or name it itself")
    return finished or [model]


def load_subject(
    model: str,
    kind: str,
    text: str | None,
    rows: int,
    calibration_rows: int,
    tokens: int,
    bos: str,
    device: str,
    out: Path | None,
    cache: Path,
    trust_remote_code: bool,
    checkpoint: Path | None = None,
) -> tuple["Subject", Path]:
    """A checkpoint of a run or a pretrained model with its text, and the folder of what is measured of it.

    Args:
        model: as given.
        kind: name of the folder: in the run folder; of a pretrained model, or with `out`, in a folder of the model's
            name in `out`, by default where `sinks analyze` writes.
        text, rows, calibration_rows, tokens, bos, device, out, cache, trust_remote_code: as the commands describe them.
        checkpoint: of a run; the last one if not given.

    Raises:
        UserError: if the model or the text cannot be read, or the text has fewer rows.
    """
    from sinks.quantize.subject import run_subject
    from sinks.record import RunFolder

    if RunFolder(model).has_provenance:
        subject = run_subject(model, rows, calibration_rows, device_of(device), checkpoint)
        return subject, (Path(model) if out is None else out / slug(model)) / kind
    from sinks.interop.extra import require_extra

    require_extra("transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from sinks.quantize.pretrained import pretrained_subject

    subject = pretrained_subject(
        model, text, rows, calibration_rows, tokens, bos, device_of(device), trust_remote_code, cache
    )
    return subject, (out or ANALYSES) / slug(model) / kind


def identity(subject: "Subject") -> dict[str, Any]:
    """What names a measurement besides its options: weights, rows and calibration rows."""
    import torch

    weights = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "model": subject.name,
        "weights": weights.hexdigest()[:16],
        "text": subject.text,
        "rows": list(subject.rows.shape),
        "rows_sha256": digest(subject.rows.tolist()),
        "calibration_rows": list(subject.calibration.shape),
        "calibration_sha256": digest(subject.calibration.tolist()),
    }


def digest(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
