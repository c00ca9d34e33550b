"""The analysis of a pretrained model on rows of a text: every statistic that exists for it, in a run folder.

The folder is that of a run without checkpoints; see `sinks.record.folder`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from sinks.interop.load import Pretrained
from sinks.interop.rows import TextRows
from sinks.interop.sites import huggingface_sites
from sinks.interop.verify import verify
from sinks.models.cross_entropy import cross_entropy
from sinks.observe import NormRecord, Reader, Record
from sinks.observe.detection import Detection
from sinks.observe.sites import Site
from sinks.progress import live
from sinks.record import RunFolder, Statistics
from sinks.record.fingerprint import config_fingerprint, reject_another_run
from sinks.record.lock import run_lock
from sinks.record.provenance import provenance
from sinks.stats import functional

STAGE = "analysis"


@dataclass(frozen=True)
class Measured:
    """What was read of a model on rows.

    Args:
        loss: of the next token in nats, mean over rows and positions.
        scalars: by key (docs/statistics.md).
        statistics: arrays [1, sites, ...].
        detection: the sinks that were found.
    """

    loss: float
    scalars: dict[str, float]
    statistics: Statistics
    detection: dict[str, Any]


def measure(
    model: nn.Module, sites: Sequence[Site], pretrained: Pretrained, tokens: Tensor, batch_size: int, progress: bool
) -> Measured:
    """Read a model at all sites, on every row.

    The sink dimensions that `rescale` and `bound` use are those of the first batch.

    Args:
        model: in evaluation mode.
        sites: of the model.
        pretrained: what the model was loaded as.
        tokens: rows of ids [N, T].
        batch_size: rows at a time.
        progress: whether to show a line on a terminal.
    """
    batches = tokens.split(batch_size)
    detection = Detection()

    def take(site: str, record: Record) -> None:
        if isinstance(record, NormRecord) and site not in reader.dimensions:
            reader.dimensions[site] = functional.choose_sink_dimensions(functional.mean_abs(record.input))
        detection.take(site, record)

    reader = Reader(sites, listener=take)
    losses = []
    with reader.reading():
        for batch in _shown(batches, progress):
            detection.start_batch(batch)
            losses.append(row_losses(model, batch))
    scalars, statistics = reader.summarize()
    scalars["attention/first_token_mass_uniform"] = functional.uniform_first_token_mass(tokens.shape[1])
    found = detection.results(lambda i: pretrained.tokenizer.decode([i], skip_special_tokens=False))
    return Measured(torch.cat(losses).double().mean().item(), scalars, statistics, found)


@torch.no_grad()
def row_losses(model: nn.Module, batch: Tensor) -> Tensor:
    """Loss of the next token [B] in nats, over all tokens [B, T] but the first."""
    on_device = batch.to(next(model.parameters()).device)
    logits = model(on_device, use_cache=False).logits
    return torch.stack([cross_entropy(row[:-1], ids[1:]) for row, ids in zip(logits, on_device, strict=True)]).cpu()


def _shown(batches: Sequence[Tensor], progress: bool) -> Iterator[Tensor]:
    rows = sum(map(len, batches))
    with live("reading", rows, shown=progress) as advance:
        for batch in batches:
            yield batch
            advance(len(batch))


def analyze(
    pretrained: Pretrained, rows: TextRows, path: Path, batch_size: int = 2, progress: bool = True
) -> tuple[RunFolder, bool]:
    """Analyze a model on rows of a text; a folder that holds this analysis already is left as it is.

    Args:
        pretrained: the model.
        rows: of the text.
        path: of the run folder.
        batch_size: rows at a time.
        progress: whether to show a line on a terminal.

    Returns:
        The run folder, and whether it was there already.

    Raises:
        UserError: if the folder holds another run, or the model's statistics cannot be trusted.
    """
    folder, own = RunFolder(path), identity(pretrained, rows)
    reject_another_run(folder, own, "--out")
    if folder.finished:
        return folder, True
    model = pretrained.model
    sites = huggingface_sites(model)
    verify(model, rows.tokens)
    with run_lock(folder.path, "--out"):
        folder.remove_leftovers()
        folder.truncate_after(-1)  # what an interrupted analysis left
        folder.write_provenance(provenance("transformers") | own)
        folder.write_config(yaml.safe_dump(_config(pretrained, rows), sort_keys=False))
        measured = measure(model, sites, pretrained, rows.tokens, batch_size, progress)
        _write(folder, pretrained, rows, measured)
    return folder, False


def identity(pretrained: Pretrained, rows: TextRows) -> dict[str, Any]:
    """What names an analysis: the files of the model, its dtype, and the rows."""
    data = hashlib.sha256(json.dumps(rows.tokens.tolist()).encode()).hexdigest()[:16]
    config = {"weights": files_fingerprint(pretrained.folder), "dtype": str(pretrained.model.dtype)}
    return {
        "variant": pretrained.name,
        "seed": None,
        "config_fingerprint": config_fingerprint(config, data),
        "data_fingerprint": data,
    }


def files_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of a model's configuration and weights."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _config(pretrained: Pretrained, rows: TextRows) -> dict[str, Any]:
    count, length = rows.tokens.shape
    return {
        "model": pretrained.name,
        "dtype": str(pretrained.model.dtype).removeprefix("torch."),
        "text": rows.source,
        "rows": count,
        "tokens": length,
        "bos": "none" if rows.bos is None else str(rows.bos),
    }


def _write(folder: RunFolder, pretrained: Pretrained, rows: TextRows, measured: Measured) -> None:
    """Everything that was measured; summary.json comes last."""
    config, count = pretrained.model.config.get_text_config(), sum(p.numel() for p in pretrained.model.parameters())
    described = {
        "name": pretrained.name,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
        "parameters": count,
    }
    text = {
        "source": rows.source,
        "rows": len(rows.tokens),
        "tokens_per_row": rows.tokens.shape[1],
        "bos": rows.bos,
        "loss": measured.loss,
    }
    numbers = {"loss": measured.loss} | measured.scalars
    folder.append_statistics(STAGE, measured.statistics)
    folder.write_analysis({"model": described, "text": text, "detection": measured.detection})
    folder.append_metrics([{"step": 0} | {f"{STAGE}/{key}": value for key, value in numbers.items()}])
    folder.finish(identity(pretrained, rows) | {"parameters": count} | numbers)
