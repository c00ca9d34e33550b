"""Materializes a decoder from the meta device, with its parameters sharded over processes."""

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sinks.models.decoder import Block, Decoder, reset_parameters
from sinks.parallel.strategy import data_mesh
from sinks.parallel.tensor_parallel import check_divisible, replicate_rest, split_block


def shard(decoder: Decoder, mesh: DeviceMesh, device: torch.device, prepare: Callable[[Block], None]) -> None:
    """Fill and shard block by block, so that no process ever holds more than its shards and one whole block.

    The parameters are bit for bit those that building the decoder on `device` would have given: they are drawn in the
    same order. Gradients are reduced in float32 whatever the dtype of the parameters.

    Args:
        decoder: on the meta device, built alike on every process.
        mesh: of the strategy, see `sinks.parallel.strategy.Sharded`.
        device: where the shards go.
        prepare: what is done to each block before it is sharded: compiled, checkpointed.

    Raises:
        UserError: if the decoder cannot be split over the tensor-parallel processes.
    """
    data, tensor_parallel = data_mesh(mesh), mesh["tensor_parallel"]
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    split = tensor_parallel.size() > 1
    check_divisible(decoder, tensor_parallel.size())
    for part in decoder.children():
        for piece in part if isinstance(part, nn.ModuleList) else [part]:
            piece.to_empty(device=device)
            reset_parameters(piece)
            if isinstance(piece, Block):
                if split:
                    split_block(piece, tensor_parallel)
                prepare(piece)
                fully_shard(piece, mesh=data, mp_policy=policy)
    decoder.tie()
    if split:
        replicate_rest(decoder, tensor_parallel)
    fully_shard(decoder, mesh=data, mp_policy=policy)
