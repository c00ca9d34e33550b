"""A transformers model to quantize, on its own, unedited code."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.interop.adapter import Adapter
from sinks.interop.classify import BlockParts, StreamNorm, parts_of
from sinks.interop.load import load_pretrained
from sinks.interop.rows import read_rows
from sinks.interop.sites import huggingface_sites
from sinks.quantize.folds import Surroundings
from sinks.quantize.inputs import BlockOf, is_plain
from sinks.quantize.kv import seam_rounding
from sinks.quantize.subject import Subject


def pretrained_subject(
    name: str,
    text: str | None,
    rows: int,
    calibration_rows: int,
    tokens: int,
    bos: str,
    device: torch.device,
    trust_remote_code: bool,
    cache: Path,
) -> Subject:
    """A transformers model in float32, on the first rows of a text; the next ones calibrate.

    Raises:
        UserError: if the model or the text cannot be read, or the text has fewer rows.
    """
    pretrained = load_pretrained(name, device, torch.float32, trust_remote_code, cache)
    wanted = rows + calibration_rows
    found = read_rows(pretrained, text, wanted, tokens, bos)
    if len(found.tokens) < wanted:
        raise UserError(
            f"{found.source} has {len(found.tokens)} rows of {tokens} tokens, but {rows} to score and "
            f"{calibration_rows} to calibrate on are wanted: give --rows or --calibration_rows less"
        )
    model = pretrained.model
    parts = parts_of(model, Adapter())
    attention = [None if part.attention is None else part.attention.module for part in parts.blocks]
    blocks = [BlockOf(part.module, found, _gates(part)) for part, found in zip(parts.blocks, attention, strict=True)]
    around = Surroundings(
        attention_norms=[_stream_norm(part.norms.get("attention.norm")) for part in parts.blocks],
        feed_forward_norms=[_stream_norm(part.norms.get("feed_forward.norm")) for part in parts.blocks],
        head_norm=_stream_norm(parts.head_norm),
        gates=["none" if part.attention and part.attention.gate is None else None for part in parts.blocks],
        head_widths=[getattr(module, "head_dim", None) for module in attention],
        clamped=any(_is_normed(update.module) for part in parts.blocks for update in part.updates.values()),
    )
    ids = found.tokens.to(device)

    def logits(batch: Tensor) -> Tensor:
        return model(batch.to(device), use_cache=False).logits

    calling = [p.attention.module for p in parts.blocks if p.attention is not None and p.attention.calls_interface]
    rounding = seam_rounding(parts.seam, calling) if calling else None
    try:
        sites = huggingface_sites(model)
    except UserError as error:
        print(f"sink tokens are not looked for: {error}")
        sites = []
    return Subject(name, model, blocks, logits, ids[:rows], ids[rows:], found.source, sites, around, rounding)


def _gates(block: BlockParts) -> list[nn.Module]:
    """The modules of a block that compute gates and nothing else: a projection may also make the queries."""
    found = [norm.gate.module for norm in block.norms.values() if norm.gate is not None]
    attention = block.attention
    if attention is not None and attention.gate is not None and attention.out_weight is not None:
        module = attention.gate.module
        if sum(m.out_features for m in module.modules() if is_plain(m)) <= attention.out_weight().shape[1]:
            found.append(module)
    return found


def _stream_norm(norm: StreamNorm | None) -> str | None:
    """A norm of the residual stream in the words of the table of folds."""
    if norm is None or norm.gate is not None or norm.pre is not None:
        return None
    return "RMSNorm" if norm.rms else "LayerNorm" if isinstance(norm.module, nn.LayerNorm) else None


def _is_normed(update: nn.Module) -> bool:
    """Whether what joins the stream is made by a norm."""
    shapes = [p.ndim for p in update.parameters()]
    return bool(shapes) and max(shapes) == 1
