"""The gate path: as it is, or quantized like every other map, whatever kernel computes it otherwise."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from transformers import PreTrainedTokenizerFast

from sinks.families import CausalLM
from sinks.interop.decoder_export import export
from sinks.models.attention_gates import ElementwiseGate, HeadwiseGate
from sinks.models.gated_norm import GatedNorm
from sinks.models.norms import PreAffine
from sinks.quantize.inputs import GATE, KINDS
from sinks.quantize.linear import quantized
from sinks.quantize.measure import Options, measure
from sinks.quantize.noise import noise_of
from sinks.quantize.pretrained import pretrained_subject
from sinks.quantize.replacements import replacements_of
from sinks.quantize.schemes import SCHEMES, scheme_of
from sinks.quantize.subject import decoder_subject
from tests.interop import tiny
from tests.quantize.test_quantized_models import SMALL, inputs, outputs, subject

GATED = {"norm": lambda d: GatedNorm(d, norm=PreAffine), "attention_gate": ElementwiseGate}
EVERY = (*KINDS, GATE)


def test_the_gate_path_is_quantized_only_if_asked_for() -> None:
    of = subject(**GATED)
    exact = outputs(of)
    gates = inputs(of, (GATE,))
    assert len(gates) == 2 * (1 + 2 * 2)  # layers: of the output gate, and down and up of two norms
    with quantized(of.model, replacements_of(gates, SCHEMES["int4"], "none", of.logits, [])):
        assert (outputs(of) - exact).abs().max() > 1e-3
    kept, all_of_it = (measure(of, Options(SCHEMES["int4"], kinds=kinds)) for kinds in (KINDS, EVERY))
    assert GATE not in kept["kinds_alone"]
    assert all_of_it["kinds_alone"][GATE]["change"]["mean"] != 0
    assert all_of_it["quantized"]["loss"] != kept["quantized"]["loss"]


@pytest.mark.parametrize(("reach", "transform"), [("static", "none"), ("row", "smooth-all"), ("row", "hadamard-16")])
def test_a_gate_that_a_kernel_computes_is_calibrated_too(reach: str, transform: str) -> None:
    """Its maps are called while something reads their inputs."""
    of = subject(**GATED)
    gates = [each for each in inputs(of, (GATE,)) if each.width % 16 == 0]
    scheme = scheme_of("w8a8", reach)  # type: ignore[arg-type]
    made = replacements_of(gates, scheme, transform, of.logits, [of.calibration], "gptq")  # type: ignore[arg-type]
    noise = noise_of(made, of.logits, [of.calibration])
    assert set(noise) == {each.name for each in gates}
    assert all(0 < (each.output or 0) < 0.1 for each in noise.values())


@pytest.mark.parametrize("gate", [HeadwiseGate, ElementwiseGate])
def test_the_gate_path_of_a_transformers_model(gate: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same maps as in the suite's own, found by what they compute."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    torch.manual_seed(0)
    model = CausalLM(300, 24, SMALL, **(GATED | {"attention_gate": gate})).eval()  # type: ignore[arg-type]
    model.configure_model()
    export(model, tmp_path / "out")
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().tokenizer).save_pretrained(tmp_path / "out")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    text = str(tmp_path / "text.txt")
    of = pretrained_subject(str(tmp_path / "out"), text, 2, 1, 12, "none", torch.device("cpu"), True, tmp_path)
    assert model.decoder is not None
    own = decoder_subject("own", model, model.decoder, of.rows, of.calibration, "")
    found, expected = (
        sorted((each.kind, each.width, len(each.linears)) for each in subject.inputs()) for subject in (of, own)
    )
    assert found == expected
    assert sum(kind == GATE for kind, _, _ in found) == 10
    with torch.no_grad():
        before = own.logits(of.rows)
        torch.testing.assert_close(of.logits(of.rows), before, rtol=1e-4, atol=1e-4)


def test_hooks_do_not_change_what_a_gate_computes() -> None:
    of = subject(**GATED)
    exact = outputs(of)
    each = inputs(of, (GATE,))[1]
    handle = each.first.register_forward_pre_hook(lambda module, args: None)
    torch.testing.assert_close(outputs(of), exact, rtol=1e-10, atol=1e-10)
    handle.remove()
    assert torch.equal(outputs(of), exact)
