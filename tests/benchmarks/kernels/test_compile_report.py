"""The offline compile report: its gates, and compiler errors that the interpreter does not show."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.kernels import compile_report
from benchmarks.kernels.sass import Loop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is Linux only")

ROW = {
    "kernel": "forward",
    "gpu": "sm_90",
    "width": 128,
    "shared_bytes": 1000,
    "tensor_core_instructions": 8,
    "hot_loop": {"spills": 0},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared_bytes": 300_000}, "300000 bytes of shared memory, the limit is 232448"),
        ({"tensor_core_instructions": 0}, "no tensor-core instruction"),
        ({"hot_loop": {"spills": 3}}, "3 spills inside the hot loop"),
    ],
)
def test_gates(change, message):
    assert compile_report.violations(ROW) == []
    (violation,) = compile_report.violations({**ROW, **change})
    assert message in violation


def test_spills_are_only_reported_at_head_dimension_256():
    assert compile_report.violations({**ROW, "width": 256, "hot_loop": {"spills": 3}}) == []


def test_at_most_eighty_configurations_each_named_once():
    names = [config.name for config in compile_report.pinned()]
    assert len(names) == len(set(names)) <= 80


def test_every_gpu_class_has_every_kernel_at_the_usual_head_dimensions():
    pinned = {config[:3] for config in compile_report.pinned() if not config.features}
    for gpu in compile_report.GPUS:
        for kernel in ("forward", "backward_keys", "backward_queries"):
            assert {(kernel, gpu, 64), (kernel, gpu, 128)} <= pinned


def test_the_element_wise_kernel_needs_no_tensor_cores_but_may_not_spill():
    row = {**ROW, "kernel": "backward_rows", "tensor_core_instructions": 0, "spills": 0}
    assert compile_report.violations(row) == []
    (violation,) = compile_report.violations({**row, "spills": 339})
    assert "339 spills in a kernel without a loop" in violation


LOOP = Loop(instructions=400, tensor_core=20, special=0, spills=0, asynchronous=20, partial_waits=0, beside=0)
FLOPS = 4096 * 800  # 800 cycles of the tensor cores of sm_90, beside 800 of instructions of 8 warps


@pytest.mark.parametrize(
    ("loop", "warps", "ctas", "expected"),
    [
        (LOOP, 8, 1, [0.5, 1.0]),  # two warpgroups take turns
        (LOOP._replace(instructions=800), 4, 1, [0.5, 0.5]),  # one alone waits
        (LOOP._replace(instructions=800, partial_waits=1), 4, 1, [0.5, 1.0]),  # unless it leaves products running
        (LOOP._replace(instructions=800), 4, 2, [0.5, 1.0]),
        (LOOP._replace(asynchronous=0), 8, 1, [0.39, 0.63]),  # mma.sync
        (LOOP._replace(special=40, beside=40), 8, 1, [0.67, 1.0]),  # one of two products beside the exponentials
        (LOOP._replace(special=40, beside=10), 8, 1, [0.57, 1.0]),
        (LOOP._replace(special=40, beside=40, instructions=800), 4, 1, [0.67, 0.67]),
    ],
)
def test_the_model_of_utilization(loop, warps, ctas, expected):
    assert compile_report.utilization(loop, warps, FLOPS, 2, compile_report.GPUS["sm_90"], ctas) == expected


def test_other_gpus_have_one_kind_of_product():
    gpu = compile_report.GPUS["sm_80"]
    assert compile_report.utilization(LOOP._replace(asynchronous=0), 8, 2048 * 800, 2, gpu, 1) == [0.5, 1.0]
    assert compile_report.utilization(LOOP, 8, 0, 0, gpu, 1) == []


def test_programs_per_sm():
    gpu = compile_report.GPUS["sm_90"]
    assert compile_report.ctas_an_sm(128, 40 * 1024, 4, gpu) == 4
    assert compile_report.ctas_an_sm(64, 100 * 1024, 4, gpu) == 2
    assert compile_report.ctas_an_sm(32, 1024, 32, gpu) == 2


def test_writes_its_tables_without_a_gpu(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.kernels.compile_report",
        "--only",
        "key_mass-d64",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "compile_report.json").read_text())
    (row,) = report["rows"]
    assert row["name"] == "key_mass-d64-sm_90"
    assert row["hot_loop"]["tensor_core"] > 0
    assert row["violations"] == []
    assert "| key_mass | sm_90 | 64 |" in (tmp_path / "compile_report.md").read_text()


def test_an_unknown_selection_is_rejected(tmp_path, capsys):
    assert compile_report.main(["--only", "backwards", "--output", str(tmp_path)]) == 2
    assert "no configuration contains 'backwards'" in capsys.readouterr().err


def test_features_outside_the_report_compile_too():
    """The interpreter accepts a variable that changes its type in a loop; the compiler does not."""
    script = """
import os
os.environ.pop("TRITON_INTERPRET", None)
from benchmarks.kernels.compile_report import Config, compile_config
for kernel, width, features in [
    ("forward", 64, ("softmax", "head_gate", "statistics", "window")),
    ("forward", 32, ("off_by_one", "gate", "statistics", "softcap")),
    ("forward", 32, ("sigmoid", "statistics", "window")),
    ("forward", 64, ("specialized", "softmax", "head_gate", "gqa")),
    ("forward", 64, ("specialized", "off_by_one", "gate")),
    ("backward_keys", 32, ("sigmoid", "softcap", "window", "gqa")),
    ("backward_queries", 32, ("sigmoid", "softcap", "window")),
    ("backward_rows", 64, ("head_gate",)),
    ("backward_rows", 64, ("gate", "softmax")),
    ("key_mass", 32, ("sigmoid", "softcap", "window")),
    ("gated_norm_forward", 256, ("statistics",)),
]:
    compile_config(Config(kernel, "sm_90", width, features))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_the_interpreter_stays_enabled():
    command = "from benchmarks.kernels import compile_report; import sys; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)
