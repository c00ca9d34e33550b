"""Tensor parallelism: neighbouring processes split the heads and hidden channels of every block.

Parameters are DTensors, for storage, clipping, optimiser and checkpoints; computing sees plain local tensors, so custom
ops and kernels need to know nothing. Two collectives per sublayer (arXiv:1909.08053, section 3): its input's gradient
and its output are summed over the processes. Everything outside a sublayer is computed alike on all of them.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.distributed._functional_collectives as functional_collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from sinks.errors import UserError
from sinks.models.decoder import Block, Decoder

# Parameters of a block that are split, and along which dimension: heads or hidden channels stand first in what reads
# the stream, and second in what writes to it.
SPLIT = {
    "attention.query.weight": 0,
    "attention.query.bias": 0,
    "attention.key.weight": 0,
    "attention.key.bias": 0,
    "attention.value.weight": 0,
    "attention.value.bias": 0,
    "attention.normalizer.sink": 0,
    "attention.normalizer.key": 0,
    "attention.normalizer.value": 0,
    "attention.gate.projection.weight": 0,
    "attention.gate.value": 0,
    "attention.out.weight": 1,
    "feed_forward.up.weight": 0,
    "feed_forward.up.bias": 0,
    "feed_forward.gate.weight": 0,
    "feed_forward.gate.bias": 0,
    "feed_forward.down.weight": 1,
}
# Whole on every process, but each sees only its own heads' share of the gradient.
SHARED_BY_HEADS = ("attention.query_norm.weight", "attention.key_norm.weight")
# Added once per process before the outputs are summed.
ADDED_BY_EACH = ("attention.out.bias", "feed_forward.down.bias")


class _Enter(torch.autograd.Function):
    """Identity, whose gradient is summed over the processes: each holds a part of the paths that lead on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.mesh), None


class _Leave(torch.autograd.Function):
    """Sum over the processes, whose gradient is passed on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        return _sum(x, mesh)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _sum(x: Tensor, mesh: DeviceMesh) -> Tensor:
    return functional_collectives.wait_tensor(functional_collectives.all_reduce(x.contiguous(), "sum", mesh))


def check_divisible(decoder: Decoder, size: int) -> None:
    """Refuse widths that cannot be split evenly.

    Raises:
        UserError: naming the width.
    """
    block = decoder.blocks[0]
    assert isinstance(block, Block)
    shape = block.attention.shape
    for name, value in (
        ("n_heads", shape.n_heads),
        ("n_kv_heads", shape.n_kv_heads),
        ("ffn_hidden", block.feed_forward.up.out_features),
    ):
        if value % size:
            raise UserError(
                f"tensor_parallel_size is {size}, but must divide {name} = {value}: give a divisor of all of n_heads, "
                "n_kv_heads and ffn_hidden"
            )


def split_block(block: Block, mesh: DeviceMesh) -> None:
    """Split a block's sublayers over the processes of a mesh, in place; parameter names stay as they are.

    Args:
        block: whole, and the same on every process.
        mesh: the tensor-parallel dimension of the device mesh.

    Raises:
        UserError: if a sublayer has a parameter that is not known how to split.
    """
    for name, _ in block.named_parameters():
        known = name in SPLIT or name in SHARED_BY_HEADS or name in ADDED_BY_EACH
        if not known and name.split(".")[0] in ("attention", "feed_forward"):
            raise UserError(
                f"tensor_parallel_size is {mesh.size()}, but how to split the parameter {name} over heads is not "
                "known: give tensor_parallel_size 1"
            )
    placements = {name: Shard(SPLIT[name]) if name in SPLIT else Replicate() for name, _ in block.named_parameters()}
    _distribute(block, placements, mesh)
    for sublayer in (block.attention, block.feed_forward):
        _sum_output(sublayer, mesh)
    _compute_locally(block, placements, mesh)


def replicate_rest(decoder: Decoder, mesh: DeviceMesh) -> None:
    """What stands outside the blocks, whole on every process of a mesh: embedding, positions, last norm, head.

    Args:
        decoder: its blocks have been split.
        mesh: the tensor-parallel dimension of the device mesh.
    """
    placements = {n: Replicate() for n, _ in decoder.named_parameters() if not n.startswith("blocks.")}
    _distribute(decoder, placements, mesh)
    _compute_locally(decoder, placements, mesh)


def _distribute(module: nn.Module, placements: Mapping[str, Placement], mesh: DeviceMesh) -> None:
    replaced: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay one
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        owner = module.get_submodule(name.rpartition(".")[0])
        if parameter not in replaced and name in placements:
            whole = distribute_tensor(parameter.detach(), mesh, [placements[name]], src_data_rank=None)
            replaced[parameter] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        if parameter in replaced:
            setattr(owner, name.rpartition(".")[2], replaced[parameter])


def _sum_output(sublayer: nn.Module, mesh: DeviceMesh) -> None:
    forward = sublayer.forward
    sublayer.forward = lambda x: _Leave.apply(forward(_Enter.apply(x, mesh)), mesh)


class _Unhooked(nn.Module):
    """A module's forward without its hooks: FSDP2's have already gathered the parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.original = module.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.original(x)


def _compute_locally(module: nn.Module, names: Collection[str], mesh: DeviceMesh) -> None:
    """Let a module's forward see the local part of its parameters."""
    inner = _Unhooked(module)

    def forward(x: Tensor) -> Tensor:
        parameters = {
            f"module.{name}": _local(name, parameter, mesh)
            for name, parameter in module.named_parameters()
            if name in names
        }
        return torch.func.functional_call(inner, parameters, (x,))

    module.forward = forward


def _local(name: str, parameter: nn.Parameter, mesh: DeviceMesh) -> Tensor:
    assert isinstance(parameter, DTensor)
    if name in SHARED_BY_HEADS:
        return parameter.to_local(grad_placements=[Partial()])
    if name in ADDED_BY_EACH:
        return parameter.to_local(grad_placements=[Partial()]) / mesh.size()
    return parameter.to_local()
