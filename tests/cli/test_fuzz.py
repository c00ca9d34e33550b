"""Any value of any option, and any damage to any file: it works, or one line says what is wrong, and nothing is left.

FUZZ_SEED=1 tries others.
"""

import contextlib
import io
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, Phase, assume, given, seed, settings

import sinks.checks
from sinks.cli import main
from sinks.cli.training import TrainingCLI
from tests.cli.damage import copied, damage, damages, state
from tests.cli.mistakes import PLACES, VALUES, Case, cases, feasible
from tests.cli.small import ROOT, SMALL, fit

SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONG = (pytest.mark.slow, pytest.mark.timeout(3600))
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
ANY = st.sampled_from(VALUES) | st.integers().map(str) | st.floats().map(str) | TEXT
REWRITTEN = ("config.yaml", "provenance.json", "events.out")  # of a run folder by every attempt to continue it

RUNS = "copy"
RUN = f"{RUNS}/baseline/seed0"
SHORT = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--checkpoints.interval=1", "--checkpoints.keep=2"]
READERS = {
    "report": ["report", RUNS],
    "value": ["value", RUN, "val_loss"],
    "validate": ["validate", f"--config={RUN}/config.yaml", f"--run.dir={RUN}"],
    "consolidate": ["consolidate", RUN],
    "fit": ["fit", *SMALL, *SHORT, "--run.variant=baseline", f"--run.dir={RUN}"],
    "resume": ["fit", *SMALL, *SHORT, "--run.variant=baseline", f"--run.dir={RUN}"],
}
OTHERS: dict[str, tuple[list[str], list[str]]] = {
    "report": (["report", RUNS], ["out"]),
    "value": (["value", RUN, "val_loss"], ["times"]),
    "consolidate": (["consolidate", RUN], ["out"]),
    "grid": (["grid", "ablation.yaml", "--commands=true"], ["seeds", "variants", "steps", "runs", "jobs", "launch"]),
    "plan": (["plan", *SMALL], ["devices", "json"]),
    "check": (
        ["check", f"{ROOT}/experiments/variants/gated-both.yaml"],
        ["model.norm_rank", "model.architecture.d_model"],
    ),
}


def tried(check: Callable[..., None], number: int, **inputs: st.SearchStrategy) -> None:
    """Call a check with so many random inputs, the same ones for the same FUZZ_SEED."""
    count = 0

    @seed(SEED)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(**inputs)
    def each(**given: object) -> None:
        nonlocal count
        check(**given)
        count += 1

    each()
    print(f"{count} inputs, FUZZ_SEED={SEED}")


def works_or_is_rejected(arguments: list[str], kept: Callable[[str], bool] = lambda name: True) -> int:
    """Run a command; an error is one line, and every file that `kept` accepts is as before."""
    before = state(Path())
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code in (0, 2, 75), errors.getvalue()  # 75: a sitting that ended before the run
    if code == 2:
        assert errors.getvalue().startswith("sinks: error: ")
        assert len(errors.getvalue().splitlines()) == 1
        after = state(Path())
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert [name for name in sorted(changed) if kept(name)] == []
    return code


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a file of text, one of bytes, and a folder."""
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("text")
    Path("BINARY").write_bytes(bytes(range(256)))
    Path("FOLDER").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report's folder of two finished runs."""
    runs = tmp_path_factory.mktemp("whole")
    fit(runs / "baseline/seed0", *SHORT, "--run.variant=baseline")
    fit(runs / "gated-both/seed0", *SHORT, "--model.norm_rank=2", "--run.variant=gated-both", variant="gated-both")
    ablation = yaml.safe_load((ROOT / "experiments/ablations/backcopy.yaml").read_text())
    (runs / "ablation.yaml").write_text(yaml.safe_dump(ablation))
    return runs


@cache
def options() -> list[Case]:
    return list(cases())


OPTION = st.deferred(lambda: st.sampled_from(options()))


@pytest.mark.parametrize("number", [6, pytest.param(1000, marks=LONG)])
def test_any_value_of_any_option_of_fit(number: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the training itself."""
    monkeypatch.setattr(TrainingCLI, "fit", lambda self, **inputs: None)

    def check(option: Case, value: str) -> None:
        needed, name = option
        assume(feasible(name, value))
        works_or_is_rejected(["fit", *SMALL, "--run.dir=run", *needed, f"--{name}={value}"])

    tried(check, number, option=OPTION, value=ANY)


@pytest.mark.parametrize("number", [2, pytest.param(200, marks=LONG)])
def test_an_accepted_value_also_trains(number: int, place: Path) -> None:
    """Two steps; numbers are small ones, because large ones that are valid take memory and time."""

    def check(option: Case, value: str) -> None:
        needed, name = option
        assume(name not in PLACES and not name.endswith(("max_steps", "min_steps")))
        arguments = ["fit", *SMALL, "--trainer.max_steps=2", "--run.dir=run", *needed, f"--{name}={value}"]
        if works_or_is_rejected(arguments) == 0:
            copied(Path("FOLDER"), Path("run"))
            Path("run").rmdir()

    small = st.integers(-2, 3).map(str) | st.floats(-2, 2).map(str)
    tried(check, number, option=OPTION, value=small | st.sampled_from([v for v in VALUES if len(v) < 8 and v != "."]))


@pytest.mark.parametrize("number", [6, pytest.param(300, marks=LONG)])
def test_any_value_of_the_other_commands(
    number: int, place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks.checks, "check", lambda build: [])  # a minute
    copied(whole, Path(RUNS))
    Path("ablation.yaml").write_text((whole / "ablation.yaml").read_text())
    Path("experiments").symlink_to(ROOT / "experiments")

    def check(option: tuple[str, str], value: str) -> None:
        command, name = option
        works_or_is_rejected([*OTHERS[command][0], f"--{name}={value}"])

    pairs = [(command, name) for command, (_, names) in OTHERS.items() for name in names]
    tried(check, number, option=st.sampled_from(pairs), value=ANY)


@pytest.mark.parametrize("number", [6, pytest.param(400, marks=LONG)])
def test_any_damage_to_any_file_that_is_read(number: int, place: Path, whole: Path) -> None:
    files = sorted(
        path.relative_to(whole)
        for path in (whole / "baseline").rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.startswith("events.out")
    )
    pairs = [(file, name) for file in [*files, Path("ablation.yaml")] for name in damages(whole / file)]

    def check(command: str, damaged: tuple[Path, str]) -> None:
        file, name = damaged
        copied(whole, Path(RUNS))
        if command == "resume":
            assume(file.name != "summary.json" and "00000002" not in file.name)
            (Path(RUN) / "summary.json").unlink()
            (Path(RUN) / "checkpoints/step00000002.ckpt").unlink()
            (Path(RUN) / "checkpoints/last.ckpt").unlink()
            (Path(RUN) / "checkpoints/last.ckpt").symlink_to("step00000001.ckpt")
        damage(Path(RUNS) / file, name)
        kept = (lambda path: not Path(path).name.startswith(REWRITTEN)) if command == "resume" else (lambda path: True)
        works_or_is_rejected(READERS[command], kept)

    by_file = st.sampled_from([*files, Path("ablation.yaml")])
    damaged = by_file.flatmap(lambda file: st.sampled_from([pair for pair in pairs if pair[0] == file]))
    tried(check, number, command=st.sampled_from(sorted(READERS)), damaged=damaged)
