"""The variant that is checked: a model small enough for float64, rebuilt for every property."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor

from sinks.families import CausalLM
from sinks.models.decoder import Block, Decoder

ROWS = 2


class Broken(Exception):
    """A property does not hold; the message gives the place and the error."""


class NotTried(Exception):
    """A property does not apply; the message gives the reason."""


@dataclass(frozen=True)
class Subject:
    """A variant.

    Args:
        make: builds it, not configured; called many times.
    """

    make: Callable[[], CausalLM]

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> CausalLM:
        """A new one in evaluation mode, initialized from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
            model.configure_model()
        return model.to(dtype).eval()

    def rows(self, model: CausalLM, seed: int = 5) -> Tensor:
        """Random rows [B, T + 1] of token ids."""
        size = (ROWS, model.context_length + 1)
        return torch.randint(0, model.vocab_size, size, generator=torch.Generator().manual_seed(seed))

    def tokens(self, model: CausalLM) -> Tensor:
        """Random token ids [B, T]."""
        return self.rows(model)[:, :-1]


def decoder_of(model: CausalLM) -> Decoder:
    """The decoder of a configured model."""
    assert model.decoder is not None
    return model.decoder


def blocks_of(model: CausalLM) -> list[Block]:
    """The blocks of a configured model."""
    return [block for block in decoder_of(model).blocks if isinstance(block, Block)]


def same(found: Tensor, expected: Tensor, what: str, tolerance: float, floor: float = 1e-12) -> None:
    """Compare two tensors, relative to the largest value expected, or to `floor` where all are smaller.

    Raises:
        Broken: naming what differs and by how much.
    """
    scale = expected.abs().max().clamp_min(floor)
    error = ((found - expected).abs().max() / scale).item()
    if not error <= tolerance:
        raise Broken(f"{what} differs by {error:.1e}, more than {tolerance:.0e} of the largest value")


def trained(model: CausalLM, rows: Tensor, steps: int, strategy: Any = "auto") -> lightning.Trainer:
    """Train on the same rows for a few steps, as the suite does; return the trainer."""
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, gradient_clip_val=1.0,
        strategy=strategy, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(rows.repeat(steps, 1), batch_size=len(rows)))  # type: ignore[arg-type]
    return trainer
