"""Shards a decoder over the ranks of a mesh: each block gathers its own parameters while it runs (FSDP2)."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from sinks.models.decoder import Decoder


def shard(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Shard every block, then what is left, over a one-dimensional data-parallel mesh.

    Args:
        decoder: built alike on every rank.
        mesh: the data-parallel dimension of the device mesh.
    """
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
