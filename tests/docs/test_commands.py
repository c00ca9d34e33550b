"""Every command that README.md and the pages of docs/ show works: reduced here, in full behind the slow mark."""

import functools
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from sinks.cli import COMMANDS, main
from sinks.cli.training import command_line
from tests.interop import tiny

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
REDUCED_FIT = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--data.batch_size=2",
    "--data.context_length=8",
    "--data.validation_rows=4",
]
REDUCED_MODEL = ["--model.architecture.d_model=16", "--model.architecture.ffn_hidden=16"]
FEW_ROWS = ["--rows=2", "--calibration_rows=2", "--batch_size=2", "--tokens=24"]
REDUCED = {
    "analyze": ["--rows=2", "--tokens=24", "--batch_size=2"],
    "probe": [*FEW_ROWS, "--threshold=1"],
    "quantize": [*FEW_ROWS, "--breakdown=false"],
    "evaluate": ["--limit=2"],
    "accuracy": ["--rows=4", "--choices=2", "--continuation_tokens=2"],
}
# What a reader has under another name, and what this machine lacks.
STAND_INS = {
    "smollm2": "path/to/model",
    "other/model.gguf": "other/second",
    "Qwen/Qwen3-0.6B": "path/to/model",
    "MODEL": "path/to/model",
    "runs/text": "runs/new",
    "cuda": "cpu",
    "bfloat16": "float32",
    "chat": "2",  # the model here has no template
    "12": "0",  # nor so many layers
    "lambada_openai,hellaswag": "my_task",  # from the hub
}
ON_GPUS = re.compile(r"trainers/(?!cpu)\S+\.yaml")
ELSEWHERE = ("wandb.yaml", "mlflow.yaml")  # need packages that are not installed


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    """The command lines of a page, without comments and output files, continued lines joined."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [re.split(r" {2,}#| #| > ", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def sinks_commands(page: str) -> list[list[str]]:
    """Those that start `sinks`, as its arguments."""
    found = (re.match(r"(?:PYTHONPATH=\. )?(?:\.venv/bin/)?sinks (.*)", line) for line in commands(page))
    return [shlex.split(match[1]) for match in found if match]


EVERY = [(page, line) for page in PAGES for line in commands(page)]
MAKE = sorted({line for _, line in EVERY if line.startswith("make ")})
OTHER = sorted({line for _, line in EVERY if not re.match(r"(PYTHONPATH=\. )?(\.venv/bin/)?sinks |make ", line)})


def write_files(folder: Path, page: str) -> None:
    """Blocks of a page that begin with the name of a file, as that file."""
    folder.mkdir(parents=True, exist_ok=True)
    for text in (block for block in [*blocks(page, "python"), *blocks(page, "yaml")] if block.startswith("# ")):
        name = text.splitlines()[0].removeprefix("# ")
        if re.fullmatch(r"\w+\.(py|yaml)", name):
            (folder / name).write_text(text)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a page's reader has it: experiments/, texts, a model, and a run; it is the working directory."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"Paragraph {i} about sinks, {i * i}." for i in range(3000)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_pages_are_read() -> None:
    assert {"make analyze", "make ablation", "make docs"} <= set(MAKE)
    assert sum(len(sinks_commands(page)) for page in PAGES) > 40
    assert {arguments[0] for page in PAGES for arguments in sinks_commands(page)} <= set(COMMANDS)


@pytest.mark.parametrize("command", MAKE)
def test_every_make_target_exists(command: str) -> None:
    environment = os.environ | {"OUT": "out"}
    subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=ROOT, check=True, capture_output=True, env=environment)


def test_what_is_no_command_of_sinks_exists(reader: Path) -> None:
    for line in OTHER:
        program, *arguments = shlex.split(line.replace(".venv/bin/", ""))
        if program == "torchrun":
            parsed = get_args_parser().parse_args([*arguments[: arguments.index("-m")], "script.py"])
            assert f"--trainer.num_nodes={parsed.nnodes}" in arguments
            assert arguments[arguments.index("-m") + 1] == "sinks"
            assert_configuration_is_whole(arguments[arguments.index("fit") + 1 :])
        elif program == "sbatch":
            assert Path(next(a for a in arguments if not a.startswith("-"))).is_file(), line
        elif program == "pip":
            assert arguments[0] == "install", line
        elif program == "python":
            assert find_spec(arguments[arguments.index("-m") + 1]), line
        elif program == "export":
            assert all("=" in a for a in arguments), line
        else:
            assert find_spec(program), line


def assert_configuration_is_whole(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0


def run_reduced(arguments: list[str]) -> None:
    """Run a command of a page at a small size."""
    command, *options = (STAND_INS.get(argument, argument) for argument in arguments)
    if command == "fit" and any(ON_GPUS.search(option) or option in ELSEWHERE for option in options):
        assert_configuration_is_whole(options)
        return
    if command == "fit" and not {"--model.help", "--help-all"} & set(options):
        own = any("imported" in option for option in options)  # sizes that are given by weights
        options += REDUCED_FIT[:2] if own else [*REDUCED_FIT, *REDUCED_MODEL]
        if any("data/text.yaml" in option for option in options):
            options += ['--data.sources=["corpus.txt"]']
        if "--checkpoints.interval" in options:
            options += ["--checkpoints.interval=1"]
    if command == "prepare":
        options += ["corpus.txt"]
    if command == "evaluate" and "--include" not in options:
        options += ["--include=path/to/tasks"]
    options += REDUCED.get(command, [])
    try:
        code = main([command, *options])
    except SystemExit as stopped_early:
        code = int(stopped_early.code or 0)
    assert code == 0, shlex.join([command, *options])


def parse_only(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command of a page, whose function is replaced by one that does nothing."""
    command, *options = arguments
    module = import_module(COMMANDS[command][0])
    called: list[dict[str, Any]] = []

    def replaced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def nothing(**given: Any) -> None:
            inspect.signature(function).bind(**given)
            called.append(given)

        return nothing

    with monkeypatch.context() as patched:
        patched.setattr(module, command, replaced(getattr(module, command)))
        assert main([command, *options]) == 0, shlex.join(arguments)
    assert called, shlex.join(arguments)


# Commands whose function makes their parser; the others take a configuration.
FUNCTIONS = ("analyze", "probe", "quantize", "evaluate", "grid", "power", "report", "export")
TRAINING_PAGES = ("README.md", "docs/training.md", "docs/own_variant.md", "docs/many_gpus.md", "docs/loggers.md")


@pytest.mark.parametrize("page", TRAINING_PAGES)
def test_every_training_command_in_order(page: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(reader, page)
    for arguments in sinks_commands(page):
        listing = arguments[0] == "grid" and "--commands" in arguments
        reporting = arguments[0] == "report" and page == "docs/training.md"
        if arguments[0] in FUNCTIONS and not listing and not reporting:
            parse_only(arguments, monkeypatch)
        else:
            run_reduced(arguments)
    if page == "docs/training.md":
        assert (reader / "runs/my-gate/report.html").is_file()
    if page == "docs/own_variant.md":
        assert (reader / "runs/squashed/summary.json").is_file()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TRAINING_PAGES])
def test_every_measuring_command_parses(page: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in sinks_commands(page):
        if arguments[0] in FUNCTIONS:
            parse_only(arguments, monkeypatch)


def furnish(folder: Path) -> None:
    """What the pages on models and runs speak of: two models, texts, a task, data in a model's tokens, two runs."""
    for name in ("path/to/model", "other/second"):
        tiny.save(folder / name)
    for name in ("prose.txt", "notes.txt"):
        (folder / name).write_text(tiny.TEXT)
    (folder / "code.jsonl").write_text(json.dumps({"text": tiny.TEXT}) + "\n")
    write_files(folder / "path/to/tasks", "docs/evaluate.md")
    questions = [{"question": f"{i} and {i} are", "choices": [f" {2 * i}", " less"], "answer": 0} for i in range(4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    shutil.copy(folder / "path/to/model/tokenizer.json", folder / "tokenizer.json")
    text = {"class_path": "Text", "init_args": {
        "sources": ["corpus.txt"], "tokenizer": "tokenizer.json", "vocab_size": 300, "bos": "none",
        "context_length": 32, "batch_size": 2, "validation_rows": 4,
    }}  # fmt: skip
    trainer = {"accelerator": "cpu", "devices": 1}
    (folder / "DATA.yaml").write_text(yaml.safe_dump({"data": text, "trainer": trainer}))
    for name, recipe in {"baseline-0": "baseline", "gated-norm-0": "gated"}.items():
        fit = ["fit", "-c", f"experiments/recipes/backcopy-{recipe}.yaml", "--run.dir", f"runs/backcopy-small/{name}"]
        run_reduced(fit)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if sinks_commands(page)])
def test_every_command_in_order(page: str, reader: Path) -> None:
    furnish(reader)
    write_files(reader, page)
    if page == "docs/own_variant.md":
        small = {"trainer": {"val_check_interval": 2}, "model": {"init_args": {"architecture": {"d_model": 16}}}}
        (reader / "small.yaml").write_text(yaml.safe_dump(small))
        file = reader / "my_ablation.yaml"
        ablation = yaml.safe_load(file.read_text())
        ablation |= {"steps": 2, "seeds": [0, 1], "configs": [*ablation["configs"], "small.yaml"]}
        file.write_text(yaml.safe_dump(ablation))
    before = sinks_commands("docs/interop.md") if page == "docs/evaluate.md" else []  # a run on text
    for arguments in [*before, *sinks_commands(page)]:
        run_reduced(arguments)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_make_ablation_in_full(tmp_path: Path) -> None:
    subprocess.run(["make", "ablation", f"RUNS={tmp_path}"], cwd=ROOT, check=True)
    assert (tmp_path / "backcopy/report.html").is_file()
    assert len(list(tmp_path.glob("backcopy/*/seed*/summary.json"))) == 33


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/training.md", "docs/own_variant.md"])
def test_every_sinks_command_in_full(page: str, reader: Path) -> None:
    furnish(reader)
    write_files(reader, page)
    for line in (line for line in commands(page) if ".venv/bin/sinks" in line):
        subprocess.run(["bash", "-c", line.replace(".venv/bin", str(ROOT / ".venv/bin"))], cwd=reader, check=True)
