"""Loggers of one's own in YAML get scalars under their own names; TensorBoard's gets its overview, maps and text."""

import csv
from pathlib import Path

import yaml
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli.small import fit


class Scalars(CSVLogger):
    """What W&B or MLflow take: anything but numbers would fail."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        assert all(isinstance(value, (int, float)) for value in metrics.values())
        super().log_metrics(metrics, step)


def test_csv_keeps_the_names_and_tensorboard_gets_its_own(tmp_path: Path) -> None:
    loggers = [
        {"class_path": "tests.runs.test_loggers.Scalars", "init_args": {"save_dir": str(tmp_path / "csv")}},
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb")}},
    ]
    (tmp_path / "loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    run = fit(tmp_path / "run", "-c", str(tmp_path / "loggers.yaml"))
    (file,) = (tmp_path / "csv").rglob("metrics.csv")
    with file.open() as rows:
        columns = set(next(csv.reader(rows)))
    logged = {key for line in run.metrics() for key in line}
    assert columns == logged
    assert "validation/residual/sink_score" in columns
    (events,) = (tmp_path / "tb").rglob("events.*")
    board = EventAccumulator(str(events.parent), size_guidance={"images": 0}).Reload()
    steps, values = run.series("validation/residual/sink_score")
    found = board.Scalars("1_overview/residual_sink_score_R/validation")
    assert [(event.step, event.value) for event in found] == list(
        zip(steps.tolist(), values.astype("float32").tolist(), strict=True)
    )
    assert {"3_maps/attention_first_token_mass", "3_maps/residual_mean_abs"} <= set(board.Tags()["images"])
    assert {"config/text_summary", "custom_scalars__config__"} <= set(board.Tags()["tensors"])
    assert not list(run.path.glob("events.*"))
