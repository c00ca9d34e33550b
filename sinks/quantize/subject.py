"""What is quantized: a model with text to score and text to calibrate on; here a run of the suite."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.attention import Attention
from sinks.models.attention_gates import AttentionGate, ProjectedGate
from sinks.models.decoder import Block, Decoder
from sinks.models.exclusion import NoExclusion
from sinks.models.key_gates import KeyGate
from sinks.models.norms import Norm
from sinks.observe import Site, sites_of
from sinks.quantize.folds import Surroundings, gate_name, norm_name
from sinks.quantize.inputs import BlockOf, SharedInput, inputs_of
from sinks.quantize.kv import Rounding, decoder_rounding
from sinks.record import RunFolder
from sinks.runs import load_run

PROBE = 8  # tokens of the pass that finds which linear maps read what


@dataclass(frozen=True)
class Subject:
    """A model and its text.

    Args:
        name: as given.
        model: in evaluation mode.
        blocks: of the residual stream.
        logits: token ids [B, T] -> [B, T, V].
        rows: token ids to score [N, T]: of each, all but the last are read and all but the first are predicted.
        calibration: token ids to read, not those that are scored [M, T].
        text: what the rows are from, in words.
        sites: at which the model's attention is read; none if it cannot be.
        around: what is between its linear maps.
        rounding_kv: the model with keys and values rounded; None if its attention cannot be edited.
    """

    name: str
    model: nn.Module
    blocks: Sequence[BlockOf]
    logits: Callable[[Tensor], Tensor]
    rows: Tensor
    calibration: Tensor
    text: str
    sites: Sequence[Site]
    around: Surroundings
    rounding_kv: Rounding | None

    def inputs(self) -> list[SharedInput]:
        """What the linear maps of the blocks read."""
        return inputs_of(self.model, self.blocks, self.logits, self.rows[:1, :PROBE])


def run_subject(
    path: str, rows: int, calibration_rows: int, device: torch.device, checkpoint: Path | None = None
) -> Subject:
    """A checkpoint of a run, by default the last, on its validation set: its first rows are scored, the next calibrate.

    Raises:
        UserError: if it is no training run, has no checkpoint, or the set has fewer rows.
    """
    if RunFolder(path).analyzed:
        raise UserError(f"{path} is an analysis of a pretrained model, no training run: give the model itself")
    run = load_run(path, checkpoint)
    data = run.data
    data.prepare_data()
    data.setup("validate")
    found = data.validation_set()
    wanted = rows + calibration_rows
    if len(found) < wanted:
        raise UserError(
            f"the validation set of {path} has {len(found)} rows, but {rows} to score and {calibration_rows} to "
            "calibrate on are wanted: give --rows or --calibration_rows less"
        )
    tokens = torch.stack([torch.as_tensor(found[i]) for i in range(wanted)]).long().to(device)
    decoder = run.model.to(device).decoder
    assert decoder is not None
    return decoder_subject(path, run.model, decoder, tokens[:rows], tokens[rows:, :-1], "its validation set")


def decoder_subject(
    name: str, model: nn.Module, decoder: Decoder, rows: Tensor, calibration: Tensor, text: str
) -> Subject:
    """The suite's own decoder, held by a model of token ids [B, T] -> logits."""
    blocks = [block for block in decoder.blocks if isinstance(block, Block)]
    parts = [
        BlockOf(block, block.attention, [m for m in block.modules() if isinstance(m, AttentionGate | KeyGate | Norm)])
        for block in blocks
    ]
    mixers = [block.attention if isinstance(block.attention, Attention) else None for block in blocks]
    around = Surroundings(
        attention_norms=[norm_name(block.attention_norm.norm) for block in blocks],
        feed_forward_norms=[norm_name(block.feed_forward_norm.norm) for block in blocks],
        head_norm=norm_name(decoder.head_norm.norm),
        gates=[None if mixer is None else gate_name(mixer.gate) for mixer in mixers],
        head_widths=[None if mixer is None else mixer.config.head_dim for mixer in mixers],
        truncated=any(
            isinstance(m, ProjectedGate) and m.dimensions not in (None, m.config.d_model)
            for block in blocks
            for m in block.modules()
        ),
        exclusive=any(mixer is not None and not isinstance(mixer.exclusion, NoExclusion) for mixer in mixers),
        clamped=any(
            bool(block.output_norms) or block.attention_clip.cuts or block.feed_forward_clip.cuts for block in blocks
        ),
    )
    sites = [mixer.config.site for mixer in mixers if mixer is not None]
    rounding = decoder_rounding(decoder, sites) if sites else None
    return Subject(name, model, parts, model, rows, calibration, text, sites_of(decoder), around, rounding)
