"""Tensor parallelism: neighboring processes split the heads and hidden channels of every block.

Parameters are DTensors for storage, clipping, optimizer and checkpoints; computation uses local tensors, so custom ops
and kernels need no changes. Two collectives per sublayer (arXiv:1909.08053, section 3): its input's gradient
and its output are summed over the processes. Everything outside a sublayer is replicated.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed._functional_collectives as functional_collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from sinks.errors import UserError
from sinks.models.decoder import Block, Decoder
from sinks.models.splits import Split


class _Enter(torch.autograd.Function):
    """Identity, whose gradient is summed over the processes: each holds a part of the downstream paths."""

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


def shard_plan(block: Block) -> dict[str, Split]:
    """How the parameters of a block are split, as its sublayers define it, by name within the block."""
    sublayers = {"attention": block.attention, "feed_forward": block.feed_forward}
    named = {f"{at}.{name}": s for at, sublayer in sublayers.items() for name, s in sublayer.shard_plan().items()}
    return {name: named[name] for name, _ in block.named_parameters() if name in named}


def check_divisible(decoder: Decoder, size: int) -> None:
    """Reject widths that cannot be split evenly, and parameters that are in no sublayer's shard plan."""
    if size == 1:
        return
    for block in decoder.blocks:
        assert isinstance(block, Block)
        plan = shard_plan(block)
        for name, _ in block.named_parameters():
            if name not in plan and name.split(".")[0] in ("attention", "feed_forward"):
                raise UserError(
                    f"tensor_parallel_size is {size}, but the parameter {name} is not in its sublayer's shard_plan(): "
                    "give tensor_parallel_size 1"
                )
        for split in plan.values():
            if split.unit and split.units % size:
                raise UserError(
                    f"tensor_parallel_size is {size}, but must divide {split.unit} = {split.units}: give a divisor of "
                    "all of n_heads, n_kv_heads and ffn_hidden"
                )


def split_block(block: Block, mesh: DeviceMesh) -> None:
    """Split a block's sublayers over the processes of a mesh, in place; parameter names stay as they are.

    Args:
        block: whole, and the same on every process; `check_divisible` has passed.
        mesh: the tensor-parallel dimension of the device mesh.
    """
    plan = shard_plan(block)
    _distribute(block, {name: _placement(plan.get(name), p.dim()) for name, p in block.named_parameters()}, mesh)
    for sublayer in (block.attention, block.feed_forward):
        _sum_output(sublayer, mesh)
    _compute_locally(block, {name: plan.get(name) for name, _ in block.named_parameters()}, mesh)


def _placement(split: Split | None, dimensions: int) -> Placement:
    divided = {"rows": 0, "columns": 1, "last": dimensions - 1}
    return Shard(divided[split.how]) if split and split.how in divided else Replicate()


def replicate_rest(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Replicate on every process what is outside the blocks, already split: embedding, positions, last norm, head."""
    names = [n for n, _ in decoder.named_parameters() if not n.startswith("blocks.")]
    _distribute(decoder, dict.fromkeys(names, Replicate()), mesh)
    _compute_locally(decoder, dict.fromkeys(names), mesh)


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

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return self.original(*inputs)


def _compute_locally(module: nn.Module, splits: Mapping[str, Split | None], mesh: DeviceMesh) -> None:
    """Run a module's forward on the local shards of its parameters."""
    inner = _Unhooked(module)

    def forward(*inputs: Tensor | None) -> Tensor:
        parameters = {
            f"module.{name}": _local(splits[name], parameter, mesh)
            for name, parameter in module.named_parameters()
            if name in splits
        }
        return torch.func.functional_call(inner, parameters, inputs)

    module.forward = forward


def _local(split: Split | None, parameter: nn.Parameter, mesh: DeviceMesh) -> Tensor:
    assert isinstance(parameter, DTensor)
    if split is None or split.how in ("rows", "columns", "last"):
        return parameter.to_local()
    part = parameter.to_local(grad_placements=[Partial()])
    return part / mesh.size() if split.how == "added" else part
