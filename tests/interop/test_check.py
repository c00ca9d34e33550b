"""What `sinks check` finds of a transformers model: that nothing is lost, and each planted fault, by name."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import sinks
import sinks.checks
from sinks.checks import Line
from sinks.cli import main
from sinks.errors import UserError
from sinks.interop.load import load_pretrained
from sinks.interop.seam import NAME, sinks_attention
from tests.cli.small import fit
from tests.interop.families import build
from tests.interop.tiny import save

PACKED = ("packed rows, by positions", "packed rows, by a mask")
# transformers' gpt-oss makes its masks without position_ids, so that a text sees those before it.
LEAKS = {"eager: packed rows, by positions", "sinks: packed rows, by positions"}


def results(lines: list[Line]) -> dict[str, str]:
    """Result by name, without flash attention, which depends on the machine."""
    return {line.name: line.result for line in lines if "flash" not in line.name}


def failures(model: PreTrainedModel, optimizer: torch.optim.Optimizer | None = None) -> dict[str, str]:
    return {line.name: line.reason for line in sinks.check(model, optimizer) if line.result == "failed"}


def test_every_line_of_gpt_oss() -> None:
    assert results(sinks.check(build("gpt-oss"))) == {
        "sinks in the optimizer": "passed",
        "sinks in the checkpoint": "passed",
        "eager: sink gradients": "passed",
        "eager: packed rows, by positions": "failed",
        "eager: packed rows, by a mask": "passed",
        **dict.fromkeys(("flex_attention: logits", "flex_attention: gradients"), "not tried"),
        **dict.fromkeys(("flex_attention: sink gradients", *(f"flex_attention: {p}" for p in PACKED)), "not tried"),
        "sdpa": "not tried",
        "sinks: logits": "passed",
        "sinks: gradients": "passed",
        "sinks: sink gradients": "passed",
        "sinks: packed rows, by positions": "failed",
        "sinks: packed rows, by a mask": "not tried",
    }


@pytest.mark.parametrize(
    ("family", "missing"), [("Llama", ""), ("Mistral", ""), ("Gemma 2", "sdpa"), ("GPT-2", "flex")]
)
def test_a_family_without_sinks_passes(family: str, missing: str) -> None:
    lines = sinks.check(build(family))
    found = results(lines)
    assert "failed" not in found.values()
    tried = [name for name, result in found.items() if result == "passed"]
    implementations = {name for name in ("eager", "flex", "sdpa", NAME) if name != missing}
    assert {
        name for name in ("eager", "flex", "sdpa", NAME) if any(t.startswith(name) for t in tried)
    } == implementations
    for name in implementations - {"eager", "flex"}:
        assert found[f"{name}: logits"] == found[f"{name}: gradients"] == "passed"
    assert all(line.reason for line in lines if line.result == "not tried")


def test_a_model_that_does_not_use_the_interface_is_named() -> None:
    found = {line.name: line for line in sinks.check(build("Falcon"))}
    assert found["sdpa"].reason == "FalconForCausalLM runs eager instead"
    assert "does not call transformers' attention interface" in found["learned sinks"].reason


def test_the_model_is_unchanged() -> None:
    model = build("gpt-oss").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    sinks.check(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "eager"
    assert not model.get_input_embeddings()._forward_hooks


# -- planted faults ---------------------------------------------------------------------------------------------------


def changing(**changes: Callable[[Any], Any]) -> Callable[..., Any]:
    """The suite's own attention function, given other arguments than the model's."""

    def function(module: Any, *args: Any, **kwargs: Any) -> Any:
        return sinks_attention(module, *args, **kwargs | {n: f(kwargs[n]) for n, f in changes.items() if n in kwargs})

    return function


# Fault: the attention function, the family, and every property that fails with part of the reason.
FUNCTIONS: dict[str, tuple[Callable[..., Any], str, dict[str, str]]] = {
    "ignores s_aux": (
        changing(s_aux=lambda s_aux: None),
        "gpt-oss",
        {"logits": "value: the sinks have no effect", "gradients": "", "sink gradients": "self_attn.sinks and 3 more"},
    ),
    "ignores the window": (
        changing(sliding_window=lambda window: None),
        "Mistral",
        {"logits": "value: the window of 4 tokens has no effect", "gradients": ""},
    ),
    "gives the sinks no gradient": (
        changing(s_aux=torch.Tensor.detach),
        "gpt-oss",
        {"gradients": "self_attn.sinks", "sink gradients": "self_attn.sinks and 3 more"},
    ),
    "takes the sinks in base 2": (
        changing(s_aux=lambda s_aux: s_aux * 0.6931),
        "gpt-oss",
        {"logits": "of the largest value", "gradients": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FUNCTIONS)
def test_a_fault_of_an_attention_function_is_named(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, family, expected = FUNCTIONS[fault]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "faulty", function)
    found = failures(build(family))
    # It has no mask function, without which transformers does not say that rows are packed.
    others = {"faulty: packed rows, by positions", *(LEAKS if family == "gpt-oss" else ())}
    assert found.keys() == others | {f"faulty: {name}" for name in expected}
    for name, word in expected.items():
        assert word in found[f"faulty: {name}"]


def ignored_on_save(model: PreTrainedModel) -> None:
    model._keys_to_ignore_on_save = {name for name in model.state_dict() if name.endswith("sinks")}


def as_buffers(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        values = layer.self_attn.sinks.detach().clone()
        del layer.self_attn.sinks
        layer.self_attn.register_buffer("sinks", values, persistent=False)


# Fault: what is done to a model, and every property that fails with part of the reason.
MODELS: dict[str, tuple[Callable[[PreTrainedModel], None], dict[str, str]]] = {
    "left out by save_pretrained": (ignored_on_save, {"sinks in the checkpoint": "save_pretrained leaves out"}),
    "buffers that are not saved": (
        as_buffers,
        {
            "sinks in the optimizer": "model.layers.0.self_attn.sinks and 3 more",
            "sinks in the checkpoint": "the state dict lacks model.layers.0.self_attn.sinks and 3 more",
            "eager: sink gradients": "no gradient reaches",
            "sinks: sink gradients": "no gradient reaches",
        },
    ),
}


@pytest.mark.parametrize("fault", MODELS)
def test_a_fault_of_a_model_is_named(fault: str) -> None:
    spoil, expected = MODELS[fault]
    model = build("gpt-oss")
    spoil(model)
    found = failures(model)
    assert found.keys() == LEAKS | expected.keys()
    for name, word in expected.items():
        assert word in found[name]


def test_an_optimizer_without_the_sinks_is_named() -> None:
    model = build("gpt-oss")
    others = [parameter for name, parameter in model.named_parameters() if "sinks" not in name]
    assert "self_attn.sinks and 3 more" in failures(model, torch.optim.AdamW(others))["sinks in the optimizer"]
    assert "sinks in the optimizer" not in failures(model, torch.optim.AdamW(model.parameters()))


def test_sinks_that_are_cast_on_the_way_are_found() -> None:
    """As in a model that computes its attention in another dtype than its parameters'."""
    model = build("gpt-oss")
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.stored = torch.nn.Parameter(attention.sinks.detach().double())
        del attention.sinks
        attention.register_forward_pre_hook(lambda module, args: setattr(module, "sinks", module.stored.float()))
    lines = {line.name: line.result for line in sinks.check(model)}
    assert lines["sinks in the optimizer"] == lines["sinks in the checkpoint"] == "passed"
    assert lines["eager: sink gradients"] == lines["sinks: gradients"] == "passed"


def test_frozen_sinks_are_not_tried() -> None:
    model = build("gpt-oss")
    for layer in model.model.layers:
        layer.self_attn.sinks.requires_grad_(False)
    found = results(sinks.check(model))
    assert found["sinks in the optimizer"] == found["eager: sink gradients"] == "not tried"
    assert found["sinks in the checkpoint"] == found["sinks: gradients"] == "passed"


# -- what can be given ------------------------------------------------------------------------------------------------


def test_a_module_that_holds_a_model_is_checked() -> None:
    holder = torch.nn.ModuleDict({"model": build("GPT-2")})
    assert results(sinks.check(holder))["sdpa: logits"] == "passed"
    with pytest.raises(UserError, match="Linear holds no transformers model: give one"):
        sinks.check(torch.nn.Linear(2, 2))


def test_the_command_checks_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(save(tmp_path / "llama")), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "passed     sdpa: logits" in lines
    assert " 0 failed, " in lines[-1]


def test_the_command_exits_with_1_where_a_property_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(module: Any, *args: Any, **kwargs: Any) -> Any:
        return 1.1 * sinks_attention(module, *args, **kwargs)[0], None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "faulty", scaled)
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(save(tmp_path / "llama")), "--device=cpu"])
    assert stopped.value.code == 1
    assert "failed     faulty: logits: the output, compared with that of eager attention" in capsys.readouterr().out


def test_a_run_folder_is_checked_as_its_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(tmp_path, "--trainer.max_steps=1", "--trainer.val_check_interval=1", variant="learnable-sink")
    built: list[torch.nn.Module] = []

    def check(build: Callable[[], Any]) -> list[Line]:
        model = build()
        model.configure_model()
        built.extend(model.modules())
        return [Line("causal", "passed")]

    monkeypatch.setattr(sinks.checks, "check", check)
    assert main(["check", str(run.path)]) == 0
    assert "LearnableSink" in {type(module).__name__ for module in built}


def test_an_analysis_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("provenance.json", "analysis.json"):
        (tmp_path / name).write_text("{}")
    assert main(["check", str(tmp_path)]) == 2
    assert "is an analysis of a pretrained model" in capsys.readouterr().err


def test_what_is_no_model_is_rejected_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    with pytest.raises(AttributeError, match="has no attribute 'checks_all'"):
        sinks.checks_all  # noqa: B018


@pytest.mark.models
def test_smollm2_passes_within_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    load_pretrained("smollm2")  # converts its file once
    start = time.process_time()
    assert main(["check", "smollm2", "--device", "cpu"]) == 0
    assert time.process_time() - start < 60
    assert "passed     sdpa: gradients" in capsys.readouterr().out
