"""How a block is run: compiled, checkpointed. Neither changes the result or the names of parameters."""

from dataclasses import dataclass

from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Execution:
    """How the model is run, not what it computes.

    Args:
        compile: compile each block with torch.compile.
        activation_checkpointing: keep only each block's input, and run the block again in the backward pass.
    """

    compile: bool = False
    activation_checkpointing: bool = False

    def prepare(self, block: nn.Module) -> None:
        """Prepare a block in place."""
        if self.activation_checkpointing:
            _checkpoint(block)
        if self.compile:
            block.compile()


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
