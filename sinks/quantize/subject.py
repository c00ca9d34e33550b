"""What is quantized: a run of the suite or a pretrained model, with text to score and text to calibrate on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.models.attention_gates import AttentionGate
from sinks.models.decoder import Block
from sinks.models.norms import Norm
from sinks.observe import Site, sites_of
from sinks.quantize.inputs import BlockOf, SharedInput, inputs_of
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
    """

    name: str
    model: nn.Module
    blocks: Sequence[BlockOf]
    logits: Callable[[Tensor], Tensor]
    rows: Tensor
    calibration: Tensor
    text: str
    sites: Sequence[Site]

    def inputs(self) -> list[SharedInput]:
        """What the linear maps of the blocks read."""
        return inputs_of(self.model, self.blocks, self.logits, self.rows[:1, :PROBE])


def run_subject(path: str, rows: int, calibration_rows: int, device: torch.device) -> Subject:
    """A run's last checkpoint, on rows of its validation set: the first ones are scored, the next ones calibrate.

    Raises:
        UserError: if it is no training run, has no checkpoint, or the set has fewer rows.
    """
    if RunFolder(path).analyzed:
        raise UserError(f"{path} is an analysis of a pretrained model, no training run: give the model itself")
    run = load_run(path)
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
    blocks = []
    for block in decoder.blocks:
        assert isinstance(block, Block)
        gates = [m for m in block.modules() if isinstance(m, AttentionGate | Norm)]
        blocks.append(BlockOf(block, block.attention, gates))
    own = (tokens[:rows], tokens[rows:, :-1], "its validation set", sites_of(decoder))
    return Subject(path, run.model, blocks, run.model, *own)


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
    from sinks.interop.adapter import Adapter
    from sinks.interop.classify import parts_of
    from sinks.interop.load import load_pretrained
    from sinks.interop.rows import read_rows
    from sinks.interop.sites import huggingface_sites

    pretrained = load_pretrained(name, device, torch.float32, trust_remote_code, cache)
    wanted = rows + calibration_rows
    found = read_rows(pretrained, text, wanted, tokens, bos)
    if len(found.tokens) < wanted:
        raise UserError(
            f"{found.source} has {len(found.tokens)} rows of {tokens} tokens, but {rows} to score and "
            f"{calibration_rows} to calibrate on are wanted: give --rows or --calibration_rows less"
        )
    model = pretrained.model
    blocks = [
        BlockOf(part.module, None if part.attention is None else part.attention.module)
        for part in parts_of(model, Adapter()).blocks
    ]
    ids = found.tokens.to(device)

    def logits(batch: Tensor) -> Tensor:
        return model(batch.to(device), use_cache=False).logits

    try:
        sites = huggingface_sites(model)
    except UserError as error:
        print(f"sink tokens are not looked for: {error}")
        sites = []
    return Subject(name, model, blocks, logits, ids[:rows], ids[rows:], found.source, sites)
