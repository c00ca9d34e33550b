"""What cannot be split is rejected in one line; that what can be split is right is tested in tests/distributed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sinks.cli import main
from sinks.cli.training import command_line
from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention_config import AttentionConfig
from sinks.models.attention_gates import AttentionGate
from sinks.parallel.strategy import Sharded
from sinks.parallel.tensor_parallel import check_divisible
from sinks.stats.accumulators import add, part_of_heads
from tests.cli.small import ROOT, small
from tests.families.variants import ARCHITECTURES, FEED_FORWARDS, SMALL, VARIANTS, build


class TemperatureGate(AttentionGate):
    """A user's gate, whose parameter is not known here."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(config)
        self.temperature = torch.nn.Parameter(torch.ones(config.n_heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.temperature[None, :, None].expand(len(x), -1, x.shape[1])


def test_widths_that_cannot_be_split_are_named() -> None:
    decoder = build("baseline").decoder
    assert decoder is not None
    check_divisible(decoder, 2)
    with pytest.raises(UserError, match="tensor_parallel_size is 4, but must divide n_kv_heads = 2"):
        check_divisible(decoder, 4)
    with pytest.raises(UserError, match="tensor_parallel_size is 3, but must divide n_heads = 4"):
        check_divisible(decoder, 3)


def test_a_parameter_of_unknown_meaning_is_rejected() -> None:
    model = CausalLM(11, 12, architecture=SMALL, attention_gate=TemperatureGate)
    model.configure_model()
    with pytest.raises(
        UserError, match=r"the parameter attention.gate.temperature is not in its sublayer's shard_plan"
    ):
        check_divisible(model.decoder, 2)  # type: ignore[arg-type]


def test_every_split_that_is_planned_names_a_parameter_that_exists() -> None:
    models = [build(name) for name in VARIANTS]
    models += [
        build("baseline", architecture=dataclasses.replace(SMALL, **options), feed_forward=feed_forward)
        for options in ARCHITECTURES.values()
        for feed_forward in FEED_FORWARDS.values()
    ]
    found: set[str] = set()
    planned: set[str] = set()
    for model in models:
        block = model.decoder.blocks[0]  # type: ignore[union-attr]
        check_divisible(model.decoder, 2)  # type: ignore[arg-type]
        found |= {name for name, _ in block.named_parameters()}
        for at in ("attention", "feed_forward"):
            planned |= {f"{at}.{name}" for name in getattr(block, at).shard_plan()}
    assert planned <= found


def test_the_parts_of_two_ranks_add_up_to_the_whole() -> None:
    whole = {
        "sum": torch.arange(4.0),
        "count": torch.tensor(3.0),
        "x_max": torch.arange(4.0) - 9,
        "nonfinite": torch.tensor(5.0),
    }
    halves = [
        {"sum": whole["sum"][i], "count": whole["count"], "x_max": whole["x_max"][i], "nonfinite": torch.tensor(n)}
        for i, n in ((slice(0, 2), 2.0), (slice(2, 4), 3.0))
    ]
    total = add(*(part_of_heads(half, rank, 2, per_head=True) for rank, half in enumerate(halves)))
    assert total.keys() == whole.keys()
    assert all(torch.equal(total[name], value) for name, value in whole.items())
    same = add(*(part_of_heads(whole, rank, 2, per_head=False) for rank in range(2)))
    assert all(torch.equal(same[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("tensor_parallel_size=0", "strategy tensor_parallel_size is 0, but must be at least 1"),
        ("replicas=0", "strategy replicas is 0, but must be at least 1"),
        ("replicas=3", "tensor_parallel_size 1 times replicas 3 must divide the number of processes, 2"),
    ],
)
def test_sizes_that_cannot_be_are_rejected_before_anything_is_written(
    option: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--trainer.strategy=sinks.parallel.strategy.Sharded", f"--trainer.strategy.{option}"]
    assert main(["fit", *small(), *sizes, "--trainer.devices=2", "--run.dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_strategy_has_a_short_name(tmp_path: Path) -> None:
    arguments = [*small(), "--trainer.strategy=sharded", "--trainer.devices=2", "--run.dir", str(tmp_path)]
    assert isinstance(command_line(arguments, run=False).trainer.strategy, Sharded)


def test_sizes_that_do_not_fit_the_processes_end_in_one_line(tmp_path: Path) -> None:
    arguments = [
        *small(),
        *("--trainer.devices=2", "--trainer.strategy=sinks.parallel.strategy.Sharded"),
        *("--trainer.strategy.tensor_parallel_size=3", "--run.dir", str(tmp_path / "run")),
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "sinks",
        "fit",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "sinks: error: " in line]
    assert lines
    assert "tensor_parallel_size 3 times replicas 1 must divide the number of processes, 2" in lines[0]
