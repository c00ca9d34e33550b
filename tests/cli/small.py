"""A run so small that a test can afford several."""

from pathlib import Path

import pytest
import torch

from sinks.cli import main
from sinks.record import RunFolder

ROOT = Path(__file__).parents[2]
VARIANTS = sorted(p.stem for p in (ROOT / "experiments/variants").glob("*.yaml"))

# Like another variant but for one part, whose own tests are quick: their runs are slow tests.
ALIKE = (
    "clip-first-token", "clip-other-tokens", "decayed-gains", "derf", "gain-free-norm", "gated-both-muon",
    "gated-norm-alone", "gated-norm-attention", "gated-norm-feed-forward", "gated-norm-head", "gated-norm-tensorwise",
    "gated-attention-from-one", "gated-attention-silu", "gated-attention-tensorwise", "gated-attention-truncated",
    "gated-keys", "softpick", "xsa", "xsa-learned", "xsa-learned-from-zero",
    "layer-norm", "single-scalar-norm", "zero-centered-norm", "zero-centered-norm-decayed",
)  # fmt: skip
EVERY_VARIANT = [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in VARIANTS]
NEEDS_THRESHOLD = ("clip-residual", "clip-first-token", "clip-other-tokens")


def small(variant: str = "baseline") -> list[str]:
    """Arguments of `sinks fit` for six steps of a tiny decoder."""
    files = [f"variants/{variant}.yaml", "models/backcopy.yaml", "data/backcopy.yaml", "trainers/cpu.yaml"]
    return [
        *(part for file in files for part in ("-c", f"{ROOT}/experiments/{file}")),
        *("--model.architecture.d_model", "16", "--model.architecture.ffn_hidden", "24"),
        *("--data.context_length", "12", "--data.batch_size", "4", "--data.validation_rows", "10"),
        *("--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--trainer.log_every_n_steps", "2"),
        *("--statistics.interval", "2", "--progress.enabled", "false"),
        *(["--model.residual_threshold", "0.05"] if variant in NEEDS_THRESHOLD else []),
    ]


SMALL = small()
THROUGHPUT = ("tokens_per_second", "tflops_per_second", "mfu", "data_wait_share", "peak_memory_gb")
CLOCKS = ("wall_s", *(f"train/{name}" for name in THROUGHPUT))


def fit(folder: Path, *more: str, variant: str = "baseline") -> RunFolder:
    """Train into a folder."""
    assert main(["fit", *small(variant), "--run.dir", str(folder), *more]) == 0
    return RunFolder(folder)


def without_clocks(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Metrics as far as they do not depend on the machine."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """Of the last checkpoint."""
    return torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
