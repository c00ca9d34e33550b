"""Completion in a shell: the script is run by the shell itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sinks.cli import COMMANDS, main
from sinks.cli.completion import completion

FEW = ("report", "power")


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words of a command line."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _sinks; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sinks.cli.COMMANDS", {name: COMMANDS[name] for name in FEW})

    completion("bash")
    return capsys.readouterr().out


def test_commands_options_and_files(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(script, "sinks", "re") == ["report"]
    assert "--out" in complete(script, "sinks", "report", "--o")
    assert complete(script, "sinks", "power", "--eff") == ["--effect"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert complete(script, "sinks", "report", "ru") == ["runs"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_its_script(script: str) -> None:
    subprocess.run(["zsh", "-n", "-c", script], check=True)


@pytest.mark.slow
def test_every_command_has_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--trainer.max_steps" in complete(script, "sinks", "fit", "--trainer.max_s")
    for command in COMMANDS:
        assert complete(script, "sinks", command, "--h"), command


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "fish"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
