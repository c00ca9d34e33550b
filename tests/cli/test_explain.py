"""A mistake in a configuration is one line that names the file, the option by its path, and the nearest name."""

from pathlib import Path

import pytest

from sinks.cli import main
from tests.cli.small import SMALL

FILES = {
    "an option of a part": (
        "model: {class_path: CausalLM, init_args: {norm: {class_path: GatedNorm, init_args: {rnk: 3}}}}",
        "FILE: model.norm.rnk is no option of GatedNorm: did you mean rank?",
    ),
    "an option of a group": (
        "model: {class_path: Gated, init_args: {optimization: {lrr: 3}}}",
        "FILE: model.optimization.lrr is no option of Gated: did you mean lr?",
    ),
    "an option of the trainer": (
        "trainer: {max_stesp: 3}",
        "FILE: trainer.max_stesp is no option: did you mean max_steps?",
    ),
    "an option near to none": ("trainer: {zzz: 3}", "FILE: trainer.zzz is no option: see sinks fit --help-all"),
    "an option of the data": (
        "data: {class_path: Backcopy, init_args: {contxt: 3}}",
        "FILE: data.contxt is no option of Backcopy: did you mean context_length?",
    ),
    "a value": (
        "model: {class_path: Baseline, init_args: {architecture: {n_layers: two}}}",
        "FILE: model.architecture.n_layers is two, but must be int",
    ),
}
ARGUMENTS = {
    "--model.architecture.n_layers=two": "command line: model.architecture.n_layers is two, but must be int",
    "--model.architecture.n_haeds=3": (
        "command line: model.architecture.n_haeds is no option of Baseline: did you mean n_heads?"
    ),
    "--model.norm_rank=3": "command line: model.norm_rank is no option of Baseline: it has vocab_size, ",
    "--data.contxt=3": "command line: data.contxt is no option of Backcopy: did you mean context_length?",
    "--model.architecture.n_kv_heads=x": "command line: model.architecture.n_kv_heads is x, but must be int, null",
    "--model.architecture.bias=all": (
        "command line: model.architecture.bias is all, but must be bool, one of 'qkv', 'attention', 'feed_forward'"
    ),
    "--statistics.leave_out=[mas]": "command line: statistics.leave_out is mas, but must be one of 'residual', ",
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SMALL, *arguments, "--run.dir", "unused"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("sinks: error: ")


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_names_it(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = FILES[case]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert said(capsys, "-c", str(file)).startswith(expected.replace("FILE", str(file)))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_mistake_on_the_command_line_names_the_option(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, argument).startswith(ARGUMENTS[argument])
