"""Folders for the notebooks to choose from: recorded runs, a run of ten steps with its checkpoint, and an analysis."""

import json
import shutil
from pathlib import Path

from sinks.record import RunFolder
from tests.cli.small import fit
from tests.report.test_model_page import write

PROJECT = Path(__file__).parents[2]
NOTEBOOKS = PROJECT / "notebooks"
RECORDED = PROJECT / "experiments/results/backcopy-float32"
MODEL = PROJECT / "experiments/results/smollm2"
VARIANTS = ("baseline", "gated-norm", "learnable-sink")
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
OWN = "write_your_own_variant"  # trains, and takes no folder


def make(root: Path) -> Path:
    """`root/backcopy`, an ablation of a few recorded variants; `root/own`, another of one trained run; and
    `root/model`, an analysis with what was recorded of SmolLM2 beside it."""
    for variant in VARIANTS:
        shutil.copytree(RECORDED / "runs" / variant / "seed0", root / "backcopy" / variant / "seed0")
    for name in ("ablation.yaml", "transfer.json"):
        shutil.copy(RECORDED / name, root / "backcopy")
    fit(root / "own/baseline/seed0", "--data.validation_rows", "20")
    (root / "own/ablation.yaml").write_text(json.dumps({"name": "own", "variants": {"baseline": {}}}))
    analysis = write(root / "model/smollm2/text-bos-none", name="smollm2")
    RunFolder(analysis).write_config("{}\n")
    for folder in ("probes", "quantization"):
        shutil.copytree(MODEL / folder, analysis.parent / folder)
    return root
