"""Keys and values rounded as attention receives them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers import PreTrainedTokenizerFast

from sinks.families import CausalLM
from sinks.interop.decoder_export import export
from sinks.models.decoder import Architecture
from sinks.quantize.formats import Integer
from sinks.quantize.kv import KV, rounder
from sinks.quantize.linear import Kept
from sinks.quantize.measure import Options, measure, score
from sinks.quantize.pretrained import pretrained_subject
from sinks.quantize.schemes import SCHEMES, Quantizer, scheme_of
from sinks.quantize.subject import Subject, decoder_subject
from tests.interop import tiny
from tests.quantize.test_quantized_models import inputs, outputs, subject

INT4 = Quantizer(Integer(4))
LLAMA = Architecture(d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, ffn_hidden=32, init_std=0.3)


def with_kv(of: Subject, quantizer: Quantizer, kept: Kept | None = None) -> Tensor:
    assert of.rounding_kv is not None
    with of.rounding_kv(rounder(quantizer, kept or Kept())):
        return outputs(of)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention of T x T weights; a key and a value for two queries."""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~causal, -torch.inf).softmax(-1) @ v


def test_attention_gets_rounded_keys_and_values() -> None:
    """Those of the first layer, whose input is that of the model as it is; a scale per head and token."""
    of = subject()
    attention, seen = of.model.decoder.blocks[0].attention, list[Tensor]()  # type: ignore[union-attr, index]
    normed: list[Tensor] = []
    attention.out_input.listener = lambda site, x: seen.append(x)  # type: ignore[union-attr, assignment]
    handle = attention.register_forward_pre_hook(lambda module, args: normed.append(args[0]))  # type: ignore[union-attr]
    found = with_kv(of, INT4)
    handle.remove()
    attention.out_input.listener = None  # type: ignore[union-attr, assignment]
    with torch.no_grad():
        q, k, v = attention.project(normed[0])  # type: ignore[union-attr, operator]
    k, v = ((x / (s := x.abs().amax(-1, keepdim=True) / 7)).round() * s for x in (k, v))
    torch.testing.assert_close(seen[0], plain(q, k, v).transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-5)
    assert (found - outputs(of)).abs().max() > 1e-3


def test_tokens_that_are_kept_keep_their_keys_and_values() -> None:
    of, kept = subject(), Kept()
    exact, rounded = outputs(of), with_kv(of, INT4)
    kept.mask = torch.ones(of.rows[:, :-1].shape, dtype=torch.bool)
    assert torch.equal(with_kv(of, INT4, kept), exact)
    kept.mask[:, 1:] = False
    first = with_kv(of, INT4, kept)
    assert torch.equal(first[:, 0], exact[:, 0])
    assert not torch.equal(first[:, 1:], rounded[:, 1:])
    assert torch.equal(outputs(of), exact)


def test_a_transformers_model_gets_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CausalLM(300, 24, LLAMA).eval()
    model.configure_model()
    export(model, tmp_path / "out")
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().tokenizer).save_pretrained(tmp_path / "out")
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    text = str(tmp_path / "text.txt")
    of = pretrained_subject(str(tmp_path / "out"), text, 2, 1, 12, "none", torch.device("cpu"), False, tmp_path)
    assert model.decoder is not None
    own = decoder_subject("own", model, model.decoder, of.rows, of.calibration, "")
    exact = outputs(of)
    for quantizer in (INT4, Quantizer(Integer(8))):
        torch.testing.assert_close(with_kv(of, quantizer), with_kv(own, quantizer), rtol=1e-3, atol=1e-3)
    assert (with_kv(of, INT4) - exact).abs().max() > 0.05
    assert torch.equal(outputs(of), exact)
    found = measure(of, Options(scheme_of("int4", "static"), kv=True))
    assert found["kinds_alone"][KV]["change"]["mean"] != 0


def test_the_cost_of_keys_and_values_alone_and_with_all_else() -> None:
    of = subject()
    found = measure(of, Options(SCHEMES["int4"], kinds=("attention.out",), kv=True))
    assert set(found["kinds_alone"]) == {"attention.out", KV}
    assert of.rounding_kv is not None
    with of.rounding_kv(rounder(INT4, Kept())):
        alone = score(of.logits, of.rows.split(4)).loss.mean().item()
    assert found["kinds_alone"][KV]["loss"] == alone
    without = measure(of, Options(SCHEMES["int4"], kinds=("attention.out",)))
    assert found["kinds_alone"]["attention.out"]["loss"] == without["quantized"]["loss"]
    assert found["quantized"]["loss"] not in (alone, without["quantized"]["loss"])
    assert without["kinds_alone"] == {}
    assert inputs(of, ("attention.out",))
