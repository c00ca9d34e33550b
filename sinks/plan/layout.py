"""How a run is spread over devices, and in what precision, read from the trainer section of a configuration."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy

from sinks.errors import UserError, require
from sinks.parallel.strategy import Sharded, shards_of_a_replica


@dataclass(frozen=True)
class Layout:
    """Processes, one per device.

    Args:
        devices: of all machines.
        strategy: one device; ddp, where each holds everything; or sharded (FSDP2).
        tensor_parallel: devices that share heads and hidden channels, and read the same data.
        replicas: groups that each hold all shards.
    """

    devices: int
    strategy: Literal["one device", "ddp", "sharded"]
    tensor_parallel: int = 1
    replicas: int = 1

    def __post_init__(self) -> None:
        shards_of_a_replica(self.devices, self.tensor_parallel, self.replicas)  # refuses sizes that do not fit

    @property
    def data_parallel(self) -> int:
        """Processes that read different data."""
        return self.devices // self.tensor_parallel

    @property
    def shards(self) -> int:
        """Parts that parameters, gradients and optimizer states are cut into."""
        return self.data_parallel // self.replicas if self.strategy == "sharded" else 1


@dataclass(frozen=True)
class Precision:
    """What is stored and what is multiplied.

    Args:
        name: as Lightning has it, e.g. `bf16-mixed`.
        stored: dtype of parameters, gradients and optimizer states.
        autocast: dtype of the matrix products where it is another one.
    """

    name: str
    stored: torch.dtype
    autocast: torch.dtype | None = None


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("32-true", torch.float32),
        Precision("bf16-mixed", torch.float32, torch.bfloat16),
        Precision("16-mixed", torch.float32, torch.float16),
        Precision("bf16-true", torch.bfloat16),
        Precision("16-true", torch.float16),
        Precision("64-true", torch.float64),
    )
}
SHORT_NAMES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true", "None": "32-true"}


def read_precision(precision: Any) -> Precision:
    """The precision of a trainer section.

    Raises:
        UserError: if it is not one whose sizes are known.
    """
    name = SHORT_NAMES.get(str(precision), str(precision))
    if name not in PRECISIONS:
        raise UserError(f"trainer.precision {name} cannot be planned: choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def count_devices(devices: Any, num_nodes: int) -> int:
    """The number of devices of all machines that a trainer section names.

    Raises:
        UserError: if it depends on the machine.
    """
    text = str(devices)
    if isinstance(devices, list):
        return len(devices) * num_nodes
    if "," in text:
        return len([part for part in text.split(",") if part.strip()]) * num_nodes
    if not text.isdigit() or not int(text):
        raise UserError(f"trainer.devices is {text}, which depends on the machine: give --devices with their number")
    return int(text) * num_nodes


def read_layout(strategy: Any, devices: int) -> Layout:
    """The layout of a strategy, by name or built, over a number of devices.

    Raises:
        UserError: if the number is not positive, the strategy is not one that can be planned, or its sizes do not
            divide the devices.
    """
    require("devices", devices, at_least=1, remedy="give the number of devices to plan for")
    if isinstance(strategy, Sharded):
        return Layout(devices, "sharded", strategy.tensor_parallel_size, strategy.replicas)
    if strategy == "auto" or str(strategy).startswith("ddp") or isinstance(strategy, DDPStrategy):
        return Layout(devices, "ddp" if devices > 1 else "one device")
    raise UserError(
        f"trainer.strategy {strategy if isinstance(strategy, str) else type(strategy).__name__} cannot be planned: "
        "choose auto, ddp or sinks.parallel.strategy.Sharded"
    )
