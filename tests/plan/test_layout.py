"""The trainer section, read without a trainer."""

from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy

from sinks.errors import UserError
from sinks.parallel.strategy import Sharded
from sinks.plan.layout import count_devices, read_layout, read_precision


@pytest.mark.parametrize(
    ("devices", "num_nodes", "expected"), [(4, 1, 4), ("4", 2, 8), ([0, 2], 1, 2), ("0,1,3", 2, 6), (1, 16, 16)]
)
def test_devices_of_all_machines(devices: Any, num_nodes: int, expected: int) -> None:
    assert count_devices(devices, num_nodes) == expected


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 0])
def test_a_number_that_depends_on_the_machine_is_asked_for(devices: Any) -> None:
    with pytest.raises(UserError, match="give --devices"):
        count_devices(devices, 1)


def test_layouts_of_the_strategies() -> None:
    assert read_layout("auto", 1).strategy == "one device"
    for strategy in ("auto", "ddp", DDPStrategy()):
        layout = read_layout(strategy, 8)
        assert (layout.strategy, layout.shards, layout.data_parallel) == ("ddp", 1, 8)
    layout = read_layout(Sharded(tensor_parallel_size=2, replicas=4), 64)
    assert (layout.strategy, layout.shards, layout.data_parallel) == ("sharded", 8, 32)


@pytest.mark.parametrize(
    ("strategy", "devices", "message"),
    [
        ("deepspeed", 8, "deepspeed cannot be planned"),
        (Sharded(tensor_parallel_size=2, replicas=3), 8, "must divide the number of processes, 8"),
        (Sharded(replicas=0), 8, "strategy replicas is 0, but must be at least 1"),
        ("auto", 0, "devices is 0"),
    ],
)
def test_what_cannot_be_planned_is_told(strategy: Any, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_layout(strategy, devices)


def test_precisions() -> None:
    assert read_precision(None).name == "32-true"
    assert read_precision("bf16").name == read_precision("bf16-mixed").name == "bf16-mixed"
    assert read_precision(16).name == "16-mixed"
    with pytest.raises(UserError, match="transformer-engine cannot be planned"):
        read_precision("transformer-engine")
