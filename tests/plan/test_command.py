"""`sinks plan` as a user calls it."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from sinks.cli import main
from tests.cli.small import ROOT, SMALL, fit

EXPERIMENTS = ROOT / "experiments"


def arguments(*files: str) -> list[str]:
    return ["plan", *(f"--config={EXPERIMENTS / file}" for file in files)]


def planned(capsys: pytest.CaptureFixture[str], command: list[str]) -> dict[str, Any]:
    assert main([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


TWO_B = arguments("variants/gated-norm-blocks.yaml", "models/2b.yaml", "data/qwen-text.yaml", "trainers/fsdp2.yaml")


def test_the_papers_2b_is_planned_without_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = planned(capsys, [*TWO_B, "--devices=64"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB; the parameters alone are 6.6 GB
    assert list(tmp_path.iterdir()) == []
    attention, feed_forward = 2 * 2048 * 2048 + 2 * 2048 * 512, 3 * 2048 * 6144
    assert plan["parameters"]["by_kind"]["norm gates"] == 3_670_016  # the paper's 3.7 M
    assert plan["parameters"]["by_kind"]["attention"] == 28 * attention
    assert plan["parameters"]["total"] == pytest.approx(1.66e9, rel=0.005)
    assert plan["parameters"]["non_embedding"] == plan["parameters"]["total"] - 151936 * 2048
    weights = 28 * (attention + feed_forward + 2 * 2 * 2048 * 16) + 151936 * 2048
    assert plan["flops_per_token"]["forward"] == 2 * weights + 28 * 2 * 2048 * 4096
    assert plan["devices"]["shards"] == 64
    assert plan["tokens_per_step"] == 64 * 4 * 4096
    memory = plan["memory_per_device"]
    assert memory["parameters"] == pytest.approx(plan["parameters"]["total"] * 4 / 64, abs=8)
    chunk, head = 2**27 // 151936 * 151936, 151936 * 2048
    assert memory["logits"] == 4 * 4096 * 2048 * 2 + head * 4 + max(2 * chunk * 4, (chunk + head) * 2)
    assert memory["logits"] < 2.5e9  # with all logits at once 27.8 GiB
    assert memory["activations"] == memory["activations_with_checkpointing"]
    assert memory["activations_with_checkpointing"] < memory["activations_without_checkpointing"] / 4


def test_a_finished_runs_configuration_is_planned_as_it_was_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path / "run", "--trainer.accumulate_grad_batches", "2")
    capsys.readouterr()
    plan = planned(capsys, ["plan", "-c", str(run.config_file)])
    assert plan["parameters"]["total"] == run.summary()["parameters"]
    assert plan["tokens_per_step"] == run.summary()["tokens"] / run.summary()["steps"]


def test_the_table_names_what_counts(capsys: pytest.CaptureFixture[str]) -> None:
    smaller = ["--model.architecture.n_layers=2", "--trainer.strategy.init_args.tensor_parallel_size=2"]
    assert main([*TWO_B, "--devices=64", *smaller]) == 0
    out = capsys.readouterr().out
    for part in ("norm gates", "attention scores", "counted causally", "logits", "gathered parameters", "524 k"):
        assert part in out
    assert "64 devices, 32 shards, 2 share heads and channels, bf16-mixed" in out


BAD = {
    "devices of the machine": (TWO_B, "trainer.devices is -1, which depends on the machine: give --devices"),
    "no devices": ([*TWO_B, "--devices=0"], "devices is 0, but must be at least 1"),
    "heads": (
        [*TWO_B, "--devices=8", "--trainer.strategy.init_args.tensor_parallel_size=4"],
        "tensor_parallel_size is 4, but must divide n_kv_heads = 2",
    ),
    "precision": ([*TWO_B, "--devices=8", "--trainer.precision=transformer-engine"], "cannot be planned"),
    "no model": (arguments("data/text.yaml"), "model"),
    "no data": (arguments("variants/baseline.yaml", "models/60m.yaml"), "data"),
    "bad option": (["plan", *SMALL, "--model.architecture.d_model=-1"], "architecture.d_model is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, expected = BAD[case]
    try:
        code = main(command)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
