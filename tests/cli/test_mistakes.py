"""The order of arguments, repeated keys, and mistakes that would end in a traceback."""

import json
from pathlib import Path

import pytest

from sinks.cli import main
from sinks.cli.parser import files_first
from sinks.cli.training import command_line
from sinks.families import Gated
from tests.cli.damage import copied, state
from tests.cli.small import SMALL, fit
from tests.cli.test_training import code_of

FILES = SMALL[:8]


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command, which is one line."""
    capsys.readouterr()
    assert code_of(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("sinks: error: ")
    assert error.count("\n") == 1
    return error


def test_files_come_first_in_their_order_and_options_after_them() -> None:
    given = ["--x=1", "-c", "a", "--y", "2", "--config=b", "-c=c", "-cd", "--config", "e", "--z"]
    assert files_first(given) == [*(f"--config={name}" for name in "abcde"), "--x=1", "--y", "2", "--z"]


def test_the_command_line_wins_over_files_wherever_it_is() -> None:
    before = [
        "--model",
        "Gated",
        "--model.norm_rank",
        "4",
        "--trainer.max_steps",
        "7",
        "--model.optimization.lr",
        "0.5",
    ]
    cli = command_line([*before, *FILES, "--run.dir=unused", "--model.architecture.d_model", "16"], run=False)
    assert isinstance(cli.model, Gated)
    assert cli.config["model"]["init_args"]["norm_rank"] == 4
    assert cli.trainer.max_steps == 7
    assert cli.model.optimization.lr == 0.5


def test_the_last_file_wins_over_the_others(tmp_path: Path) -> None:
    for steps in (3, 5):
        (tmp_path / f"{steps}.yaml").write_text(f"trainer: {{max_steps: {steps}}}")
    files = ["-c", str(tmp_path / "3.yaml"), f"--config={tmp_path / '5.yaml'}"]
    assert command_line([*FILES, "--run.dir=unused", *files], run=False).trainer.max_steps == 5


def test_a_plan_follows_the_command_line_before_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--data.batch_size=3", "--data.context_length=10", *FILES]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_per_step"] == 30


def test_a_repeated_key_is_rejected_by_every_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("trainer: {max_steps: 3}\ntrainer: {log_every_n_steps: 1}\n")
    expected = f"{file} has key 'trainer' twice, in lines 1 and 2: keep one"
    assert expected in one_line(["fit", *SMALL, "--run.dir=unused", "-c", str(file), "--print_config"], capsys)
    assert expected in one_line(["plan", *SMALL, "-c", str(file)], capsys)
    assert expected in one_line(["check", str(file)], capsys)
    assert expected in one_line(["grid", str(file)], capsys)


@pytest.mark.parametrize("place", ["value", "file of a value", "file of a file"])
def test_a_repeated_key_within_a_value_is_rejected(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "class_path: Gated\ninit_args:\n  norm_rank: 4\n  norm_rank: 5\n"
    (tmp_path / "model.yaml").write_text(text)
    (tmp_path / "outer.yaml").write_text(f"model: {tmp_path / 'model.yaml'}")
    more = {
        "value": ["--model={class_path: Gated, init_args: {norm_rank: 4, norm_rank: 5}}"],
        "file of a value": [f"--model={tmp_path / 'model.yaml'}"],
        "file of a file": ["-c", str(tmp_path / "outer.yaml")],
    }[place]
    assert "has key 'norm_rank' twice" in one_line(["fit", *SMALL, "--run.dir=unused", *more], capsys)


def test_an_empty_section_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("statistics:\n  # interval: 5\n")
    error = one_line(["fit", *SMALL, "--run.dir=unused", "-c", str(file)], capsys)
    assert f"{file} has an empty section 'statistics'" in error


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("finished") / "run").path


def test_a_file_in_place_of_a_folder_is_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    before = state(finished)
    assert str(file) in one_line(["fit", *SMALL, f"--run.dir={file}"], capsys)
    assert str(file) in one_line(["report", str(finished), f"--out={file}"], capsys)
    assert file.read_text() == "kept"
    assert state(finished) == before


@pytest.mark.parametrize("option", ["model.norm_gate", "model.norm_rank", "data.batch_size"])
def test_a_null_where_the_type_has_none_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = one_line(["fit", *SMALL, "--run.dir=unused", "--model=Gated", f"--{option}=null"], capsys)
    assert f"{option} is null, but its type has none: leave it out for the default" in error


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_numpy_does_not_take_is_one_line(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = one_line(["fit", *SMALL, "--run.dir=unused", f"--seed_everything={seed}"], capsys)
    assert f"seed_everything is {seed}, but must be at least 0 and at most 4294967295" in error


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("summary.json", "{", "summary.json is damaged"),
        ("summary.json", "[]", "summary.json is damaged"),
        ("provenance.json", "3", "provenance.json is damaged"),
        ("metrics.jsonl", '{"step": 1}\n{"step": "two"}\n{"step": 3}\n', "metrics.jsonl is damaged (line 2"),
        ("statistics/00000003-00000003-validation.safetensors", "x", "validation.safetensors is damaged"),
    ],
)
def test_a_damaged_run_is_one_line_and_leaves_the_older_report(
    name: str, entry: str, expected: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished, tmp_path / "run")
    (run / "report.md").write_text("older")
    (run / name).write_text(entry)
    before = state(run)
    assert expected in one_line(["report", str(run)], capsys)
    assert state(run) == before


def test_a_number_that_a_run_lacks_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text('{"residual_p999": null, "val_loss": "nan", "steps": 3}')
    for key in ("residual_p999", "val_loss"):
        error = one_line(["value", str(tmp_path), key], capsys)
        assert f"has no finite number {key!r}: name one of steps" in error


def test_the_report_of_one_token_of_context_has_no_sinks(tmp_path: Path) -> None:
    fit(tmp_path / "baseline/seed0", "--data.context_length=1", "--trainer.max_steps=1")
    assert main(["report", str(tmp_path)]) == 0
    assert "baseline" in (tmp_path / "report.md").read_text()
