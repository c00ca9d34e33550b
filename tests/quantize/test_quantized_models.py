"""Linear maps in place of a model's own: exact without rounding, the same model afterward, right scores."""

import pytest
import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention_gates import AttentionGate, ElementwiseGate, HeadwiseGate
from sinks.models.decoder import Architecture, Block
from sinks.models.gated_norm import GatedNorm
from sinks.models.norms import DyT, Norm, PreAffine
from sinks.quantize.calibrate import channel_largest
from sinks.quantize.formats import Integer
from sinks.quantize.linear import QuantizedLinear, Replacement, quantized
from sinks.quantize.measure import Options, measure, paired_change, replacements_of, score
from sinks.quantize.readers import GATE, KINDS, BlockOf, Readers, left_out, readers_of
from sinks.quantize.schemes import SCHEMES, Quantizer, Scheme, scheme_of
from sinks.quantize.sqnr import decibels, output_noise
from sinks.quantize.subject import Subject
from sinks.quantize.transforms import transform_of

EXACT = Scheme(None, None)
SMALL = Architecture(
    d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, ffn_hidden=32, init_std=0.3, bias=True, qk_norm=True,
    tied_embeddings=True,
)  # fmt: skip
VARIANTS = {
    "baseline": {},
    "pre-affine": {"norm": PreAffine, "head_norm": PreAffine},
    "gated-norm": {"norm": GatedNorm},
    "dyt": {"norm": DyT},
    "headwise": {"attention_gate": HeadwiseGate},
    "elementwise": {"attention_gate": ElementwiseGate},
}


def subject(**parts: object) -> Subject:
    torch.manual_seed(0)
    model = CausalLM(vocab_size=40, context_length=24, architecture=SMALL, **parts).eval()  # type: ignore[arg-type]
    model.configure_model()
    model = model.double()
    assert model.decoder is not None
    blocks = []
    for block in model.decoder.blocks:
        assert isinstance(block, Block)
        gates = [m for m in block.modules() if isinstance(m, AttentionGate | Norm)]
        blocks.append(BlockOf(block, block.attention, gates))
    tokens = torch.randint(40, (8, 25), generator=torch.Generator().manual_seed(1))
    return Subject("small", model, blocks, model, tokens[:4], tokens[4:, :-1], "random")


def readers(of: Subject, kinds: tuple[str, ...] = (*KINDS, GATE)) -> list[Readers]:
    return [each for each in readers_of(of.model, of.blocks, of.probe) if each.kind in kinds]


def outputs(of: Subject) -> Tensor:
    with torch.no_grad():
        return of.logits(of.rows[:, :-1])


def test_maps_are_together_where_they_read_the_same_input() -> None:
    found = {each.name: set(each.linears) for each in readers(subject(attention_gate=HeadwiseGate, norm=GatedNorm))}
    first = "decoder.blocks.0"
    assert {k: v for k, v in found.items() if "blocks.0" in k} == {
        "blocks.0.attention.in": {f"{first}.attention.{name}" for name in ("query", "key", "value")},
        "blocks.0.attention.out": {f"{first}.attention.out"},
        "blocks.0.feed_forward.in": {f"{first}.feed_forward.{name}" for name in ("gate", "up")},
        "blocks.0.feed_forward.out": {f"{first}.feed_forward.down"},
        f"{first}.attention.gate.projection": {f"{first}.attention.gate.projection"},
    } | {
        f"{first}.{norm}.norm.{name}": {f"{first}.{norm}.norm.{name}"}
        for norm in ("attention_norm", "feed_forward_norm")
        for name in ("down", "up")
    }


@pytest.mark.parametrize("transform", ["smooth", "smooth-all", "hadamard", "hadamard-16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transforms_are_exact_without_rounding(variant: str, transform: str) -> None:
    of = subject(**VARIANTS[variant])  # type: ignore[arg-type]
    chosen = readers(of, KINDS)
    largest = channel_largest(chosen, of.logits, [of.calibration])
    made = [Replacement(each, EXACT, transform_of(transform, each, largest[each.name])) for each in chosen]  # type: ignore[arg-type]
    expected = outputs(of)
    with quantized(of.model, made):
        assert any(isinstance(m, QuantizedLinear) for m in of.model.modules())
        torch.testing.assert_close(outputs(of), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(outputs(of), expected)


def test_nothing_edited_leaves_the_model_bitwise_alone() -> None:
    of = subject()
    expected, modules = outputs(of), dict(of.model.named_modules())
    with quantized(of.model, replacements_of(readers(of), EXACT, "none", of.logits, [])):
        assert torch.equal(outputs(of), expected)
    assert dict(of.model.named_modules()) == modules


def test_the_model_is_its_own_again_after_an_error() -> None:
    of = subject()
    modules = dict(of.model.named_modules())
    with pytest.raises(RuntimeError), quantized(of.model, replacements_of(readers(of), EXACT, "none", of.logits, [])):
        raise RuntimeError
    assert dict(of.model.named_modules()) == modules


def test_rounded_products_are_those_of_a_plain_loop() -> None:
    """Every linear map alone against Q(x) Q(W)^T + b."""
    of = subject()
    scheme = SCHEMES["int4"]
    with quantized(of.model, replacements_of(readers(of), scheme, "none", of.logits, [])):
        maps = [m for m in of.model.modules() if isinstance(m, QuantizedLinear)]
    originals = {n: m for n, m in of.model.named_modules() if isinstance(m, nn.Linear) and "blocks" in n}
    assert len(maps) == len(originals) == 14
    for quantized_map, linear in zip(maps, originals.values(), strict=True):
        x = torch.randn(3, 5, linear.in_features, dtype=torch.float64)
        top_x, top_w = x.abs().amax(-1, keepdim=True) / 7, linear.weight.abs().amax(-1, keepdim=True) / 7
        expected = ((x / top_x).round() * top_x) @ ((linear.weight / top_w).round() * top_w).T + linear.bias
        torch.testing.assert_close(quantized_map(x), expected, rtol=1e-5, atol=1e-5)


def test_a_shared_input_is_rounded_once() -> None:
    of = subject()
    calls = []

    class Counting(Integer):
        def __call__(self, x: Tensor, largest: Tensor) -> Tensor:
            calls.append(x.shape)
            return super().__call__(x, largest)

    chosen = readers(of, ("attention.in",))
    with quantized(of.model, replacements_of(chosen, Scheme(None, Quantizer(Counting(8))), "none", of.logits, [])):
        outputs(of)
    assert len(calls) == 2  # layers


def test_first_tokens_stay_in_high_precision() -> None:
    of = subject()
    made = replacements_of(readers(of), scheme_of("int4", only="activations"), "none", of.logits, [])
    with quantized(of.model, made) as kept:
        rounded = outputs(of)
        kept.mask = torch.zeros(of.rows[:, :-1].shape, dtype=torch.bool)
        kept.mask[:, 0] = True
        first = outputs(of)
        kept.mask[:] = True
        every = outputs(of)
    exact = outputs(of)
    assert torch.equal(every, exact)
    assert torch.equal(first[:, 0], exact[:, 0])
    assert not torch.equal(rounded[:, 0], exact[:, 0])


def test_scores_and_noise_against_plain_formulas() -> None:
    of = subject()
    logits = outputs(of)
    scores = score(of.logits, of.rows.split(3))
    expected = nn.functional.cross_entropy(logits.float().transpose(1, 2), of.rows[:, 1:], reduction="none")
    torch.testing.assert_close(scores.loss, expected.double())
    assert torch.equal(scores.correct, (logits.argmax(-1) == of.rows[:, 1:]).double())
    change = paired_change(scores.loss, scores.loss + torch.arange(4.0)[:, None], seed=0)
    assert change["mean"] == pytest.approx(1.5)
    assert 0 <= change["low"] < 1.5 < change["high"] <= 3

    (each,) = replacements_of(readers(of, ("feed_forward.out",))[:1], SCHEMES["int4"], "none", of.logits, [])
    inputs: list[Tensor] = []
    (linear,) = each.readers.linears.values()
    handle = linear.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().flatten(0, 1)))
    noise = output_noise([each], of.logits, [of.rows[:, :-1]])
    handle.remove()
    quantizer = Quantizer(Integer(4))
    with torch.no_grad():
        plain = inputs[0] @ linear.weight.T
        error = plain - quantizer(inputs[0]) @ quantizer(linear.weight).T
    ratio = (error.square().sum(-1) / plain.square().sum(-1)).mean()
    assert noise == {"blocks.0.feed_forward.out": pytest.approx(ratio.item(), rel=1e-9)}
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0) is None


def test_static_scales_are_those_of_the_calibration_text() -> None:
    of = subject()
    scheme = scheme_of("int4", "static")
    for transform in ("none", "hadamard-16"):
        made = replacements_of(readers(of, KINDS), scheme, transform, of.logits, [of.calibration])  # type: ignore[arg-type]
        seen: dict[str, float] = {}

        def watch(each: Replacement, seen: dict[str, float] = seen) -> object:
            def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen[each.readers.name] = each.transform.inputs(args[0]).abs().max().item()

            return next(iter(each.readers.linears.values())).register_forward_pre_hook(see)

        handles = [watch(each) for each in made]
        with torch.no_grad():
            of.logits(of.calibration)
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
        for each in made:
            assert each.scheme.activations is not None
            assert each.scheme.activations.largest is not None
            assert each.scheme.activations.largest.item() == pytest.approx(seen[each.readers.name], rel=1e-6)


def test_measure_reports_each_kind_alone() -> None:
    of = subject()
    found = measure(of, Options(SCHEMES["int4"], batch_size=2))
    assert set(found["kinds_alone"]) == {"attention.in", "attention.out", "feed_forward.in", "feed_forward.out"}
    (kind,) = [k for k in found["kinds_alone"] if k == "attention.out"]
    made = replacements_of(readers(of, (kind,)), SCHEMES["int4"], "none", of.logits, [])
    with quantized(of.model, made):
        alone = score(of.logits, of.rows.split(2))
    assert found["kinds_alone"][kind]["loss"] == alone.loss.mean().item()
    assert found["quantized"]["change"]["mean"] == pytest.approx(found["quantized"]["loss"] - found["loss"])
    assert len(found["output_sqnr_by_input"]) == 8


def test_modules_that_are_no_linear_map_are_named() -> None:
    of = subject()
    found = readers(of)
    assert left_out(found, of.blocks) == []
    assert left_out([each for each in found if each.kind != "attention.out"], of.blocks) == ["Linear"]
    with pytest.raises(UserError, match=r"has no nn\.Linear in its blocks"):
        readers_of(of.model, [BlockOf(nn.LayerNorm(3), None)], of.probe)


def test_a_matrix_that_is_not_there_is_one_line() -> None:
    of = subject()
    each = readers(of, ("attention.in",))[0]
    linear = nn.Linear(688, 3)
    other = Readers("blocks.0.feed_forward.out", "feed_forward.out", {"down": linear})
    with pytest.raises(UserError, match="no Hadamard matrix of 688 is known here: transform blocks, with hadamard-16"):
        transform_of("hadamard", other, None)
    with pytest.raises(UserError, match="has 12 channels, which 16 does not divide"):
        transform_of("hadamard-16", Readers(each.name, each.kind, {"down": nn.Linear(12, 3)}), None)
