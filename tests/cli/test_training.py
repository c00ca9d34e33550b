"""`sinks fit` and `sinks validate` as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sinks.cli import main
from sinks.record import RunFolder
from sinks.record.board import tag_of
from tests.cli.small import SMALL, fit, weights, without_clocks


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("runs") / "baseline")


def test_a_run_writes_a_complete_folder(finished: RunFolder) -> None:
    names = {p.name for p in finished.path.iterdir()}
    assert {"config.yaml", "provenance.json", "metrics.jsonl", "statistics", "checkpoints", "summary.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert "hparams.yaml" not in names
    summary = finished.summary()
    expected = (
        "variant seed config_fingerprint steps tokens wall_s tokens_per_second train_loss val_loss first_token_mass "
        "first_token_mass_max_head sink_ratio_0.3 value_norm_ratio residual_max_over_median residual_sink_score "
        "learned_sink_mass gate_mean"
    )
    assert set(expected.split()) <= summary.keys()
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 4 * 12
    assert summary["learned_sink_mass"] is None
    assert 0 < summary["first_token_mass"] <= summary["first_token_mass_max_head"] <= 1
    assert finished.provenance()["versions"]["torch"] == torch.__version__.split("+")[0]


def test_metrics_have_one_line_per_logged_step(finished: RunFolder) -> None:
    steps = [line["step"] for line in finished.metrics()]
    assert steps == [1, 2, 3, 4, 6]
    assert finished.series("train/loss")[0].tolist() == [2, 4, 6]
    assert finished.series("validation/loss")[0].tolist() == [3, 6]
    steps, worst = finished.series("train/gradient_norm_p999")
    assert steps.tolist() == [3, 6]
    assert worst[-1] >= finished.series("train/gradient_norm")[1].max() * 0.99
    assert finished.series("train/clip_crossings_per_10k")[1][-1] == finished.summary()["clip_crossings_per_10k"]
    statistics = finished.statistics("train")
    assert statistics.steps.tolist() == [1, 2, 4, 6]
    assert statistics.arrays["attention/first_token_mass"].shape == (4, 2, 1)
    assert statistics.arrays["residual/mean_abs"].shape == (4, 5, 16)
    assert statistics.sites["residual"][0] == "blocks.0.attention.norm.input"
    assert statistics.sites["residual"][-1] == "head.norm.input"


def test_tensorboard_holds_the_same_numbers(finished: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.path), size_guidance={"scalars": 0})
    events.Reload()
    for key in ("train/loss", "validation/loss", "validation/residual/sink_score", "train/attention/first_token_mass"):
        steps, values = finished.series(key)
        logged = events.Scalars(tag_of(key))
        assert [e.step for e in logged] == steps.tolist()
        assert [e.value for e in logged] == pytest.approx(values.tolist(), rel=1e-6)


def test_tensorboard_holds_maps_and_histograms(finished: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.path), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert [e.step for e in events.Images("3_maps/attention_first_token_mass")] == [3, 6]
    histogram = events.Histograms("4_histograms/head.norm")[-1].histogram_value
    assert histogram.num == sum(histogram.bucket) == 10 * 12 * 16
    statistics = finished.statistics()
    assert histogram.max >= statistics.arrays["residual/max_abs"][-1, -1].max()


def test_a_finished_run_is_not_run_again(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished.path / "summary.json").stat().st_mtime_ns
    fit(finished.path)
    assert "is finished" in capsys.readouterr().out
    assert (finished.path / "summary.json").stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_rejected(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, "--run.dir", str(finished.path), "--model.optimization.lr", "1e-4"]) == 2
    assert "holds a run of another configuration" in capsys.readouterr().err


def test_the_saved_configuration_repeats_the_run_bit_for_bit(finished: RunFolder, tmp_path: Path) -> None:
    assert main(["fit", "-c", str(finished.config_file), "--run.dir", str(tmp_path / "again")]) == 0
    again = RunFolder(tmp_path / "again")
    assert without_clocks(again.metrics()) == without_clocks(finished.metrics())
    assert all(torch.equal(w, weights(again)[name]) for name, w in weights(finished).items())
    assert again.summary()["config_fingerprint"] == finished.summary()["config_fingerprint"]


def test_validate_repeats_the_logged_loss_and_statistics(finished: RunFolder) -> None:
    before = finished.config_file.read_bytes(), finished.metrics()
    assert main(["validate", "-c", str(finished.config_file), "--ckpt_path", str(finished.last_checkpoint)]) == 0
    (file,) = (finished.path / "validation").iterdir()
    assert file.name.startswith("step00000006-")
    result = json.loads(file.read_text())
    last = finished.metrics()[-1]
    assert result["validation/loss"] == last["validation/loss"]
    for key in ("attention/first_token_mass", "residual/sink_score", "residual/kurtosis"):
        assert result[key] == last[f"validation/{key}"]
    assert (finished.config_file.read_bytes(), finished.metrics()) == before


def test_an_interrupted_run_resumes_and_ends_as_if_it_had_not_been(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinks.callbacks import RunRecorder

    folder = tmp_path / "interrupted"
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(folder / "checkpoints"), "every_n_train_steps": 2, "save_last": "link"},
    }
    (tmp_path / "checkpoint.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [checkpoint]}}))
    more = ("-c", str(tmp_path / "checkpoint.yaml"))
    original = RunRecorder.on_train_batch_end

    def fail_at_step_5(self: RunRecorder, trainer: object, *rest: object) -> None:
        if trainer.global_step == 5:  # type: ignore[attr-defined]
            raise RuntimeError("pulled the plug")
        original(self, trainer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RunRecorder, "on_train_batch_end", fail_at_step_5)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        main(["fit", *SMALL, "--run.dir", str(folder), *more])
    monkeypatch.undo()
    assert not RunFolder(folder).finished
    resumed = fit(folder, *more)
    assert without_clocks(resumed.metrics()) == without_clocks(finished.metrics())
    assert all(torch.equal(w, weights(resumed)[name]) for name, w in weights(finished).items())


def test_a_checkpoint_of_another_architecture_is_rejected(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(finished.last_checkpoint)
    assert (
        main(
            [
                "validate",
                *SMALL,
                "--model",
                "Gated",
                "--model.norm_rank",
                "2",
                "--ckpt_path",
                checkpoint,
                "--run.dir",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "the checkpoint is of another architecture" in capsys.readouterr().err


def test_a_diverging_run_is_a_result(tmp_path: Path) -> None:
    run = fit(tmp_path, "--model.optimization.lr", "1e30", "--model.optimization.warmup_steps", "1")
    assert run.summary()["diverged"] is True


def test_clipping_relative_to_a_baseline_takes_the_number_from_its_summary(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["value", str(finished.path), "residual_p999", "--times=0.5"]) == 0
    threshold = capsys.readouterr().out.strip()
    assert float(threshold) == 0.5 * finished.summary()["residual_p999"]
    run = fit(tmp_path, "--model", "Clipped", f"--model.residual_threshold={threshold}")
    assert run.config()["model"]["init_args"]["residual_threshold"] == float(threshold)
    assert 0 < run.summary()["clipped_share"] < 1
    assert main(["value", str(finished.path), "variant"]) == 2
    assert "has no finite number 'variant': name one of seed, steps" in capsys.readouterr().err


BAD = {
    "unknown option": (["--trainer.max_step", "3"], "trainer.max_step"),
    "unknown model option": (["--model.architecture.depth", "3"], "architecture.depth"),
    "wrong type": (["--model.architecture.d_model", "two"], "two"),
    "unknown family": (["--model", "Gatd"], "choose one of Baseline"),
    "unknown data": (["--data", "Backcpy"], "choose one of Backcopy"),
    "missing file": (["-c", "nowhere.yaml"], "there is no configuration file nowhere.yaml"),
    "rank too small": (
        ["--model", "Gated", "--model.norm_rank", "0"],
        "norm rank is 0, but must be at least 1 and at most 16",
    ),
    "rank too large": (["--model", "Gated", "--model.norm_rank", "17"], "norm rank is 17"),
    "heads": (["--model.architecture.n_heads", "3"], "which n_heads = 3 does not divide"),
    "kv heads": (["--model.architecture.n_heads", "4", "--model.architecture.n_kv_heads", "3"], "n_kv_heads is 3"),
    "clip threshold": (["--model", "Clipped", "--model.residual_threshold", "0"], "residual threshold is 0.0"),
    "no threshold": (["--model", "Clipped"], "residual clipping has no threshold"),
    "context": (["--data.context_length", "0"], "context_length is 0"),
    "interval": (["--statistics.interval", "0"], "statistics.interval is 0"),
    "steps": (["--trainer.max_steps", "-1"], "trainer.max_steps is -1"),
    "devices": (["--trainer.devices", "none"], "devices"),
    "no checkpoint": (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
    "missing text": (
        ["--data", "Text", "--data.sources", '["nowhere.txt"]'],
        "nowhere.txt is neither a file nor a folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert code_of(["fit", *SMALL, "--run.dir", "run", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("sinks: error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("modle: {}", "unknown section 'modle'"),
        ("modle: {init_args: {x: 1}}", "unknown section 'modle'"),
        ("run: {variant: '${model.nosuch.key}'}", "model.nosuch.key"),
        ("model: {init_args: {optimization: {lrr: 1}}}", "lrr"),
        ("trainer: [", "is not YAML"),
        ("- trainer", "must hold sections"),
    ],
)
def test_a_bad_file_gets_one_line(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert code_of(["fit", *SMALL, "--run.dir", str(tmp_path / "run"), "-c", str(file)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_interpolation_reaches_across_files_and_follows_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "name.yaml"
    file.write_text("run: {variant: 'lr-${model.init_args.optimization.lr}'}")
    run = fit(tmp_path / "run", "-c", str(file), "--model.optimization.lr", "0.005")
    assert run.summary()["variant"] == "lr-0.005"


def code_of(arguments: list[str]) -> int:
    """The exit code, whether returned or raised by a parser."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def test_a_context_longer_than_the_text_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("\n\n".join(f"Paragraph {i} of a short text." for i in range(400)))
    arguments = ["--data", "Text", "--data.sources", '["short.txt"]', "--data.context_length", "5000"]
    assert code_of(["fit", *SMALL, "--run.dir", "run", *arguments]) == 2
    assert "5000" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_reader_that_ends_early_is_no_error() -> None:
    code = "from sinks.cli import main; import sys; sys.exit(main(['prepare', '--help']))"
    done = subprocess.run(f'{sys.executable} -c "{code}" | head -1', shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
