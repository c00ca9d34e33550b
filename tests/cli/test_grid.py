"""What Make and the shell do with the values that a user gives them."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from sinks.cli import main
from sinks.cli.grid import planned, read_ablation
from tests.cli.small import ROOT
from tests.cli.test_mistakes import one_line

# Prints what it is called with.
STUB = """#!/bin/sh
for word; do printf '[%s]' "$word" >> "$CALLS"; done; echo >> "$CALLS"
[ "$1" != grid ] || echo "the folder"
"""


@pytest.fixture
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def make(tmp_path: Path, *arguments: str, stub: str = STUB) -> tuple[int, str, list[str]]:
    """Exit code, error, and the calls of `sinks` of `make ablation`."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    program, calls = tmp_path / "venv/bin/sinks", tmp_path / "calls"
    program.write_text(stub)
    program.chmod(0o755)
    command = ["make", "--no-print-directory", f"--old-file={tmp_path}/venv/.installed", "ablation"]
    environment = {"PATH": "/usr/bin:/bin", "CALLS": str(calls)}
    done = subprocess.run(
        [*command, f"VENV={tmp_path}/venv", "PYTHON=true", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr, calls.read_text().splitlines() if calls.exists() else []


def test_make_passes_values_on_as_they_are(tmp_path: Path) -> None:
    runs = f"{tmp_path}/it's my runs"
    more = ["SEEDS=0, 1", "VARIANTS=a, b", f"RUNS={runs}", 'LAUNCH=srun --comment="a b"', "JOBS=0"]
    code, error, calls = make(tmp_path, *more)
    assert (code, error) == (0, "")
    assert calls == [
        f"[grid][experiments/ablations/backcopy.yaml][--seeds=0, 1][--variants=a, b][--runs={runs}]"
        '[--jobs=0][--launch=srun --comment="a b"]',
        "[probe][--side=attention][--sinks=first][--rows=96][--calibration_rows=32][--batch_size=32][--edit=masked]"
        "[--controls=0][the folder]",
        "[report][the folder]",
    ]


def test_make_reports_what_is_there_if_a_run_cannot_be_measured(tmp_path: Path) -> None:
    code, _, calls = make(tmp_path, "VARIANTS=a", stub=STUB + '[ "$1" != probe ]\n')
    assert code == 2
    assert [call.split("]")[0] for call in calls] == ["[grid", "[probe", "[report"]


@pytest.mark.usefixtures("in_the_root")
def test_a_number_of_jobs_below_one_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    error = one_line(["grid", "experiments/ablations/backcopy.yaml", "--jobs=0"], capsys)
    assert error == "sinks: error: jobs is 0, but must be at least 1: leave it out for one per core\n"


@pytest.mark.usefixtures("in_the_root")
def test_seeds_may_have_spaces_and_repetitions(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--seeds=0, 1,0", "--variants=baseline", "--runs=my runs", "--commands=true"]
    assert main(["grid", "experiments/ablations/backcopy.yaml", *chosen]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [word for words in commands for word in words if "run.dir" in word] == [
        f"--run.dir=my runs/backcopy/baseline/seed{seed}" for seed in (0, 1)
    ]


def test_a_package_without_the_repository_says_where_the_ablations_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    error = one_line(["grid", "experiments/ablations/backcopy.yaml"], capsys)
    assert "the project's repository, not its package, has experiments/ablations/" in error
    error = one_line(["grid", str(ROOT / "experiments/ablations/backcopy.yaml")], capsys)
    assert "experiments/models/backcopy.yaml, which does not exist: paths start in the project's root" in error


WHOLE = {"name": "a", "configs": ["c.yaml"], "steps": 1, "seeds": [0], "variants": {"b": {"config": "c.yaml"}}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": 3}, "has name 3, but must have a str"),
        ({"seeds": ["x"]}, "has seeds ['x'], but must have a list"),
        ({"seeds": [-1]}, "a seed is -1"),
        ({"steps": 0}, "lacks steps"),
        ({"steps": -1}, "steps is -1"),
        ({"configs": 3}, "has configs 3"),
        ({"variants": {"b": 3}}, "has variants"),
        ({"variants": {"b": None}}, "variant b has no config"),
        ({"variants": {"b": {"config": "c.yaml", "needs": "x", "measured": {}}}}, "has needs 'x': give one of b"),
        ({"variants": {"b": {"config": "c.yaml", "against": "x"}}}, "variant b has against 'x': give one of b"),
        ({"variants": {"b": {"config": "c.yaml", "needs": "b", "measured": {"o": 3}}}}, "has measured {'o': 3}"),
    ],
)
def test_an_ablation_of_another_shape_is_one_line(
    change: dict, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").touch()
    Path("a.yaml").write_text(yaml.safe_dump(WHOLE | change))
    assert expected in one_line(["grid", "a.yaml"], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "c.yaml"]


def test_the_values_of_options_reach_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").touch()
    value = "a ${b} $c 'd' #"
    variants = {"b": {"config": "c.yaml", "arguments": {"run.note": value}}}
    Path("a.yaml").write_text(yaml.safe_dump(WHOLE | {"variants": variants}))
    assert main(["grid", "a.yaml", "--commands=true"]) == 0
    assert f"--run.note={value}" in shlex.split(capsys.readouterr().out)


@pytest.mark.usefixtures("in_the_root")
def test_steps_of_a_variant_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("experiments/ablations/tokens.yaml")
    content = read_ablation(file)
    names = ["baseline-tokens-x4", "gated-norm"]
    assert [run.steps for run in planned(content, Path("r"), names, [0], content["steps"])] == [10000, 2500]
    error = one_line(["grid", str(file), "--steps=50", "--commands=true"], capsys)
    assert "steps is 50, but variant baseline-tokens-x1 of tokens is on a curve of tokens, with steps of its" in error
    assert main(["grid", str(file), "--steps=50", "--variants=gated-norm", "--seeds=0", "--commands=true"]) == 0
    assert "--trainer.max_steps=50" in capsys.readouterr().out


def test_minutes_give_every_run_as_many_steps_as_were_timed_to_fit(
    in_the_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """800 steps took 50 s: 4 runs, 2 at a time, have 2 minutes, 1 for each, which are 960 steps."""
    monkeypatch.setattr("sinks.runs.precision.has_bfloat16", lambda: False)
    file = "experiments/ablations/backcopy.yaml"
    options = ["--runs", str(tmp_path), "--variants=baseline,gated-norm", "--seeds=0,1", "--jobs=2", "--commands=true"]
    assert main(["grid", file, *options, "--minutes=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("--trainer.max_steps=960" in line and "backcopy-960steps" in line for line in lines)
    for more, words in {
        ("--minutes=2", "--steps=3"): "both give the length of a run: give one",
        ("--minutes=0",): "minutes is 0.0, but must be above 0",
    }.items():
        assert words in one_line(["grid", file, *options, *more], capsys)
    untimed = ["grid", "experiments/ablations/text.yaml", "--runs", str(tmp_path), "--minutes=2"]
    assert "text has no run_seconds for 32-true: give steps" in one_line(untimed, capsys)
