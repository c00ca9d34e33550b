"""How a decoder is run: compiled, checkpointed, sharded. None of it changes what is computed."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from sinks.models.decoder import Decoder


def prepare(decoder: Decoder, compile: bool, activation_checkpointing: bool) -> None:
    """Compile each block, or run it again in the backward pass; parameter names stay as they are.

    Args:
        decoder: whose blocks are prepared in place.
        compile: whether to compile.
        activation_checkpointing: whether to keep only a block's input.
    """
    for block in decoder.blocks:
        if activation_checkpointing:
            _checkpoint(block)
        if compile:
            block.compile()


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=False)


def shard(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Shard every block, then what is left, over a data-parallel mesh: FSDP2 gathers a block while it runs.

    Args:
        decoder: built alike on every rank.
        mesh: the data-parallel dimension of the device mesh.
    """
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
