"""The sharded strategy: FSDP2 over all processes, in replicas (HSDP), or with tensor parallelism."""

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import StrategyRegistry
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sinks.errors import UserError, require
from sinks.parallel.sharded_checkpoints import ShardedCheckpoints


class Sharded(ShardedCheckpoints):
    """Parameters, gradients and optimizer states sharded by FSDP2; the remaining processes split the data.

    With `replicas` the processes fall into groups that each hold the whole model (HSDP: shards within a machine,
    replicas between machines). With `tensor_parallel_size` neighboring processes split heads and hidden channels.

    Args:
        tensor_parallel_size: processes that share the heads and hidden channels of each layer, and read the same data.
        replicas: groups of processes that each hold all shards.
        save_distributed_checkpoint: each process writes its own shards, into a folder; otherwise one file is gathered.
        process_group_backend: nccl or gloo; chosen by the device if not given.
        timeout: after which a collective that another process does not join ends the run.
    """

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        replicas: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=10),
    ) -> None:
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.tensor_parallel_size, self.replicas = tensor_parallel_size, replicas

    @property
    def shards(self) -> int:
        """Processes among which the parameters of one replica are sharded."""
        return shards_of_a_replica(self.world_size, self.tensor_parallel_size, self.replicas)

    def data_parallel_size(self) -> int:
        return self.shards * self.replicas

    def setup_environment(self) -> None:
        super().setup_environment()
        if self.replicas > 1:
            mesh = init_device_mesh(
                self.root_device.type,
                (self.replicas, self.shards, self.tensor_parallel_size),
                mesh_dim_names=("replica", "data_parallel", "tensor_parallel"),
            )
            self.use_mesh(mesh)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.data_parallel_size(), "rank": self.global_rank // self.tensor_parallel_size}


def shards_of_a_replica(processes: int, tensor_parallel_size: int, replicas: int) -> int:
    """Into how many shards the parameters of one replica are cut.

    Raises:
        UserError: if the sizes do not divide the number of processes.
    """
    for name, value in (("tensor_parallel_size", tensor_parallel_size), ("replicas", replicas)):
        require(f"strategy {name}", value, at_least=1, remedy="give 1 for none")
    shards, rest = divmod(processes, tensor_parallel_size * replicas)
    if rest:
        raise UserError(
            f"strategy tensor_parallel_size {tensor_parallel_size} times replicas {replicas} must divide the number of "
            f"processes, {processes}: change one of them"
        )
    return shards


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The dimensions over which parameters are replicated and sharded: all but the tensor-parallel one."""
    names = mesh.mesh_dim_names or ()
    return mesh["replica", "data_parallel"] if "replica" in names else mesh["data_parallel"]


StrategyRegistry.register("sharded", Sharded, description="FSDP2 over all processes")
