"""`sinks quantize` on a run, on the checkpoint that it was imported from, and on what cannot be quantized."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sinks.cli import main
from tests.interop import tiny

SHORT = ("--rows=3", "--calibration_rows=2", "--batch_size=2", "--device=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a checkpoint in `model`, the run imported from it in `run`, and a text."""
    folder = tmp_path_factory.mktemp("quantize")
    tiny.save(folder / "model")
    (folder / "text.txt").write_text(tiny.TEXT)
    data = ["--data=Backcopy", "--data.context_length=12", "--data.batch_size=2", "--data.validation_rows=6"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1", "--progress.enabled=false"]
    assert main(["fit", "--model=Baseline", *data, *trainer, "--run.dir", str(folder / "run")]) == 0
    return folder


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("*.json"))]


def test_a_run_is_quantized_into_its_folder_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(folder / "run"), "--scheme", "int4", "--scheme", "mxfp4", *SHORT]
    assert main(command) == 0
    files = {file: file.stat().st_mtime_ns for file in (folder / "run/quantization").iterdir()}
    found = results(folder / "run/quantization")
    assert [each["scheme"] for each in found] == ["int4", "mxfp4"]
    assert all(each["quantized"]["change"]["mean"] != 0 for each in found)
    assert found[0]["provenance"]["versions"]["torch"]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("(unchanged)") == 2
    assert {file: file.stat().st_mtime_ns for file in (folder / "run/quantization").iterdir()} == files


def test_several_are_quantized_in_one_command_and_a_broken_one_ends_no_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for name in ("a", "b", "c"):
        shutil.copytree(folder / "run", runs / name, symlinks=True, ignore=shutil.ignore_patterns("quantization"))
    shutil.rmtree(runs / "b/checkpoints")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["quantize", str(runs), "--scheme=int4", "--scheme=fp8", *SHORT])
    out, error = capsys.readouterr()
    assert error.startswith(f"sinks: error: {runs / 'b'} has no complete checkpoint")
    assert error.count("\n") == 1
    assert out.splitlines() == [
        f"{number} of 3  {runs / name}/quantization: 2 measured, 0 unchanged" for number, name in ((1, "a"), (3, "c"))
    ]
    assert main(["quantize", str(runs / "a"), str(runs / "c"), "--scheme=int4", "--scheme=w8a8", *SHORT]) == 0
    assert capsys.readouterr().out.count("quantization: 1 measured, 1 unchanged") == 2


def test_a_pretrained_model_is_quantized(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", str(folder / "text.txt"), "--tokens=12"]
    options = ["--scheme=int4", "--transform=none", "--transform=smooth", "--activation_scale=static"]
    assert main(["quantize", str(folder / "model"), *text, *options, *SHORT, "--out", str(tmp_path)]) == 0
    found = results(tmp_path)
    assert [each["transform"] for each in found] == ["none", "smooth"]
    assert len(found[0]["output_sqnr_by_input"]) == 4 * 4
    assert found[0]["output_sqnr"] != found[1]["output_sqnr"]
    assert found[0]["folds"] == {}
    assert {kind: fold["exact"] for kind, fold in found[1]["folds"].items()} == {
        "attention.in": True,
        "feed_forward.in": True,
    }
    assert found[0]["sink_tokens"]["fraction"] >= 0
    assert "smooth is free in deployment: weight / s" in capsys.readouterr().out


def test_a_breakdown_is_measured_when_it_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(folder / "run"), "--scheme=int4", *SHORT, "--out", str(tmp_path)]
    assert main([*command, "--breakdown=false"]) == 0
    (short,) = results(tmp_path)
    assert "kinds_alone" not in short
    assert main(command) == 0
    (whole,) = results(tmp_path)
    assert short["quantized"] == whole["quantized"]
    assert "kinds_alone" in whole
    capsys.readouterr()
    assert main([*command, "--breakdown=false"]) == 0
    out, error = capsys.readouterr()
    assert "(unchanged)" in out
    assert "row/s" not in error  # no line without a terminal
    assert results(tmp_path) == [whole]


def test_weights_are_rounded_as_asked_for_and_keys_and_values_too(folder: Path, tmp_path: Path) -> None:
    command = ["quantize", str(folder / "run"), "--scheme=int4", *SHORT, "--out", str(tmp_path)]
    for method in ("nearest", "clip", "gptq"):
        assert main([*command, "--weight_rounding", method]) == 0
    assert main([*command, "--kv=quantize"]) == 0
    found = {(each["weight_rounding"], each["kv"]): each for each in results(tmp_path)}
    assert len(found) == 4
    assert len({each["quantized"]["loss"] for each in found.values()}) == 4
    assert found["nearest", "quantize"]["kinds_alone"].keys() - found["nearest", "keep"]["kinds_alone"].keys() == {"kv"}


def test_a_result_is_named_by_the_rows_at_a_time(folder: Path, tmp_path: Path) -> None:
    """On which a scale of a whole tensor depends."""
    command = ["quantize", str(folder / "run"), "--scheme=int4", "--activation_scale=tensor", "--rows=3"]
    for size in (1, 3):
        assert main([*command, "--calibration_rows=2", f"--batch_size={size}", "--out", str(tmp_path)]) == 0
    found = results(tmp_path)
    assert {each["batch_size"] for each in found} == {1, 3}
    assert len({each["quantized"]["loss"] for each in found}) == 2


@pytest.mark.parametrize("content", [b"", b'{"loss": 1.0}', b"[1]", b'{"loss"', b"\xff\xfe"])
def test_a_damaged_result_is_one_line(
    content: bytes, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(folder / "run"), "--scheme=int4", "--kind=attention.out", *SHORT, "--out", str(tmp_path)]
    assert main(command) == 0
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(content)
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{file} is damaged" in error
    assert "delete it to measure again" in error
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--scheme=int3",), "scheme is 'int3', which is none: give one of w8a8"),
        (("--kind=qkv",), "kind is 'qkv', which is none: give one of attention.in"),
        (("--rows=0",), "rows is 0, but must be at least 1"),
        (("--rows=5",), "has 6 rows, but 5 to score and 2 to calibrate on are wanted"),
        (("--scheme=w4a16", "--only=activations"), "has no quantized activations"),
        (("--transform=fold",), "transform"),
        (("--activation_scale=block",), "activation_scale"),
        (("--only=activations", "--weight_rounding=gptq"), "weight_rounding is gptq, but --only=activations rounds no"),
        (("--weight_rounding=awq",), "weight_rounding"),
        (("--kind=attention.inner",), "has no input of kind attention.inner: give one of attention.in, attention.out"),
        (("--kind=gate",), "kind is 'gate', which is none: give one of attention.in"),
        (("--kv=quantize", "--scheme=w4a16"), "scheme w4a16 has no format of activations, which keys and values get"),
        (("--kv=quantize", "--only=weights"), "scheme nvfp4 has no format of activations"),
        (("--gates=quantize",), "has no gate path that could be quantized: leave --gates out"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: tuple[str, ...], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {argument.partition("=")[0] for argument in arguments}
    short = [option for option in SHORT if option.partition("=")[0] not in names]
    try:
        code = main(["quantize", str(folder / "run"), *short, *arguments])
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert reason in error


def test_a_run_without_a_checkpoint_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "provenance.json"):
        (tmp_path / name).write_bytes((folder / "run" / name).read_bytes())
    assert main(["quantize", str(tmp_path), *SHORT]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "quantization").exists()


def test_an_analysis_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("provenance.json", "analysis.json"):
        (tmp_path / name).write_text("{}")
    assert main(["quantize", str(tmp_path), *SHORT]) == 2
    assert "is an analysis of a pretrained model, no training run: give the model itself" in capsys.readouterr().err


def test_a_width_without_a_hadamard_matrix_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """688 = 16 x 43, of which the blocks of 16 have one."""
    tiny.save(tmp_path / "model", intermediate_size=688)
    capsys.readouterr()
    command = ["quantize", str(tmp_path / "model"), "--text", str(folder / "text.txt"), "--tokens=12", *SHORT]
    assert main([*command, "--transform=hadamard", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no Hadamard matrix of 688 is known here: rotate blocks, with hadamard-16, or choose smooth" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main([*command, "--transform=hadamard", "--kind=attention.in", "--out", str(tmp_path / "out")]) == 0
    assert main([*command, "--transform=hadamard-16", "--out", str(tmp_path / "out")]) == 0


def test_calibration_longer_than_the_text_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(folder / "model"), "--text", str(folder / "text.txt"), "--tokens=12", "--rows=3"]
    assert main([*command, "--calibration_rows=100000", "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"has \d+ rows of 12 tokens, but 3 to score and 100000 to calibrate on are wanted: give", error)
    assert error.count("\n") == 1


def test_a_model_without_plain_linear_maps_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2 has Conv1D."""
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().tokenizer).save_pretrained(tmp_path / "model")
    text = ["--text", str(folder / "text.txt"), "--tokens=12"]
    assert main(["quantize", str(tmp_path / "model"), *text, *SHORT, "--out", str(tmp_path / "out")]) == 2
    assert "has no nn.Linear in its blocks: only these can be quantized" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
