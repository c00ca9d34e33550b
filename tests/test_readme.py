"""Every command the README shows works: reduced here, in full behind the slow mark; GPU commands are parsed."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from sinks.cli import main
from sinks.cli.training import command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REDUCED_FIT = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--data.batch_size=2",
    "--data.context_length=8",
    "--data.validation_rows=4",
    "--model.architecture.d_model=16",
    "--model.architecture.ffn_hidden=16",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [
    line.split("  #")[0].split("   #")[0].strip()
    for block in blocks("bash")
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
MAKE = [c for c in COMMANDS if c.startswith("make ")]
SINKS = [c.removeprefix("PYTHONPATH=. ") for c in COMMANDS if ".venv/bin/sinks" in c]
ON_GPUS = re.compile(r"trainers/(?!cpu)\S+\.yaml")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: experiments/, and the two files of "Add a variant"."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    for text in (block for block in [*blocks("python"), *blocks("yaml")] if block.startswith("# ")):
        name = text.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(text)
    (folder / "corpus.txt").write_text("\n\n".join(f"Paragraph {i} about sinks, {i * i}." for i in range(3000)))
    return folder


def test_the_readme_is_read() -> None:
    assert {"make ablation", "make test"} <= set(MAKE)
    assert len(SINKS) >= 8


@pytest.mark.parametrize("command", MAKE)
def test_every_make_target_exists(command: str) -> None:
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def assert_configuration_is_whole(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0


def test_what_starts_several_machines_is_parsed(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    for line in (c for c in COMMANDS if "torchrun" in c):
        launcher, arguments = line.split(" -m sinks fit ")
        parsed = get_args_parser().parse_args([*shlex.split(launcher)[1:], "script.py"])
        assert parsed.nnodes == shlex.split(arguments)[-3].removeprefix("--trainer.num_nodes=")
        assert_configuration_is_whole(shlex.split(arguments))
    for script in (c.split()[1] for c in COMMANDS if c.startswith("sbatch ")):
        assert Path(script).is_file()


def test_every_sinks_command_in_order(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    monkeypatch.syspath_prepend(str(user))
    for line in SINKS:
        command, *arguments = shlex.split(line)[1:]
        if command == "fit" and ON_GPUS.search(line):
            assert_configuration_is_whole(arguments)
            continue
        if command == "fit" and "--model.help" not in arguments:
            arguments += REDUCED_FIT
            if any("data/text.yaml" in a for a in arguments):
                arguments += ['--data.sources=["corpus.txt"]']
        if command == "prepare":
            arguments += ["corpus.txt"]
        try:
            code = main([command, *arguments])
        except SystemExit as stopped_early:
            code = int(stopped_early.code or 0)
        assert code == 0, line
    assert (user / "runs/my-gate/report.html").is_file()
    assert (user / "runs/squashed/summary.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_make_ablation_in_full(tmp_path: Path) -> None:
    subprocess.run(["make", "ablation", f"RUNS={tmp_path}"], cwd=ROOT, check=True)
    assert (tmp_path / "backcopy/report.html").is_file()
    assert len(list(tmp_path.glob("backcopy/*/seed*/summary.json"))) == 33


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_sinks_command_in_full(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(user / "runs", ignore_errors=True)  # of the reduced commands
    for line in SINKS:
        if "sinks fit" in line and ON_GPUS.search(line):
            continue
        environment = "PYTHONPATH=." if "my_variant" in line else ""
        subprocess.run(
            ["bash", "-c", f"{environment} {line.replace('.venv/bin', str(ROOT / '.venv/bin'))}"], cwd=user, check=True
        )
