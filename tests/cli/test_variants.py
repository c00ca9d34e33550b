"""For every variant that is shipped: its run can be repeated, and measured again."""

import json
from pathlib import Path

import pytest
import torch

from sinks.cli import main
from sinks.record import RunFolder
from tests.cli.small import EVERY_VARIANT, fit, weights, without_clocks


@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_config_and_checkpoint_repeat_the_run(variant: str, tmp_path: Path) -> None:
    run = fit(tmp_path / "first", variant=variant)
    assert main(["fit", "-c", str(run.config_file), "--run.dir", str(tmp_path / "again")]) == 0
    again = RunFolder(tmp_path / "again")
    assert without_clocks(again.metrics()) == without_clocks(run.metrics())
    assert all(torch.equal(w, weights(again)[name]) for name, w in weights(run).items())

    assert main(["validate", "-c", str(run.config_file)]) == 0
    (file,) = (run.path / "validation").iterdir()
    measured = json.loads(file.read_text())
    assert measured["validation/loss"] == run.metrics()[-1]["validation/loss"] == run.summary()["val_loss"]
