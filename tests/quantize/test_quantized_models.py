"""Linear maps in place of a model's own: exact without rounding, the same model afterward, right scores."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sinks.errors import UserError
from sinks.families import CausalLM
from sinks.models.attention_gates import ElementwiseGate, HeadwiseGate
from sinks.models.decoder import Architecture
from sinks.models.gated_norm import GatedNorm
from sinks.models.norms import DyT, PreAffine
from sinks.quantize.calibrate import channel_largest
from sinks.quantize.formats import Integer, e2m1, e4m3
from sinks.quantize.hadamard import hadamard
from sinks.quantize.inputs import GATE, KINDS, SharedInput
from sinks.quantize.linear import QuantizedLinear, Replacement, quantized, rounded_weights
from sinks.quantize.measure import Options, measure, paired_change, rows_read, score
from sinks.quantize.noise import decibels, noise_of
from sinks.quantize.replacements import replacements_of
from sinks.quantize.schemes import SCHEMES, Quantizer, Scheme, scheme_of
from sinks.quantize.subject import Subject, decoder_subject
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


def subject(architecture: Architecture = SMALL, **parts: object) -> Subject:
    torch.manual_seed(0)
    model = CausalLM(vocab_size=40, context_length=24, architecture=architecture, **parts).eval()  # type: ignore[arg-type]
    model.configure_model()
    model = model.double()
    assert model.decoder is not None
    tokens = torch.randint(40, (8, 25), generator=torch.Generator().manual_seed(1))
    return decoder_subject("small", model, model.decoder, tokens[:4], tokens[4:, :-1], "random")


def inputs(of: Subject, kinds: tuple[str, ...] = (*KINDS, GATE)) -> list[SharedInput]:
    return [each for each in of.inputs() if each.kind in kinds]


def outputs(of: Subject) -> Tensor:
    with torch.no_grad():
        return of.logits(of.rows[:, :-1])


@pytest.mark.parametrize("transform", ["smooth", "smooth-all", "hadamard", "hadamard-16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transforms_are_exact_without_rounding(variant: str, transform: str) -> None:
    of = subject(**VARIANTS[variant])  # type: ignore[arg-type]
    chosen = inputs(of, KINDS)
    largest = channel_largest(chosen, of.logits, [of.calibration])
    transforms = [transform_of(transform, each, largest[each.name]) for each in chosen]  # type: ignore[arg-type]
    made = [
        Replacement(each, None, found, rounded_weights(each, None, found))
        for each, found in zip(chosen, transforms, strict=True)
    ]
    expected = outputs(of)
    with quantized(of.model, made):
        assert any(isinstance(m, QuantizedLinear) for m in of.model.modules())
        torch.testing.assert_close(outputs(of), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(outputs(of), expected)


def test_nothing_edited_leaves_the_model_bitwise_alone() -> None:
    of = subject()
    expected, modules = outputs(of), dict(of.model.named_modules())
    with quantized(of.model, replacements_of(inputs(of), EXACT, "none", of.logits, [])):
        assert torch.equal(outputs(of), expected)
    assert dict(of.model.named_modules()) == modules


def test_the_model_is_its_own_again_after_an_error() -> None:
    of = subject()
    modules = dict(of.model.named_modules())
    with pytest.raises(RuntimeError), quantized(of.model, replacements_of(inputs(of), EXACT, "none", of.logits, [])):
        raise RuntimeError
    assert dict(of.model.named_modules()) == modules


def test_rounded_products_are_those_of_a_plain_loop() -> None:
    """Every linear map alone against Q(x) Q(W)^T + b."""
    of = subject()
    scheme = SCHEMES["int4"]
    with quantized(of.model, replacements_of(inputs(of), scheme, "none", of.logits, [])):
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

    chosen = inputs(of, ("attention.in",))
    with quantized(of.model, replacements_of(chosen, Scheme(None, Quantizer(Counting(8))), "none", of.logits, [])):
        outputs(of)
    assert len(calls) == 2  # layers


def test_first_tokens_stay_in_high_precision() -> None:
    of = subject()
    made = replacements_of(inputs(of), scheme_of("int4", only="activations"), "none", of.logits, [])
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

    (each,) = replacements_of(inputs(of, ("feed_forward.out",))[:1], SCHEMES["int4"], "none", of.logits, [])
    read: list[Tensor] = []
    (linear,) = each.input.linears.values()
    handle = linear.register_forward_pre_hook(lambda module, args: read.append(args[0].detach().flatten(0, 1)))
    noise = noise_of([each], of.logits, [of.rows[:, :-1]])
    handle.remove()
    quantizer = Quantizer(Integer(4))
    with torch.no_grad():
        plain = read[0] @ linear.weight.T
        error = plain - quantizer(read[0]) @ quantizer(linear.weight).T
    ratio = (error.square().sum(-1) / plain.square().sum(-1)).mean()
    assert noise["blocks.0.feed_forward.out"].output == pytest.approx(ratio.item(), rel=1e-9)
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0) is None


def test_static_scales_are_those_of_the_calibration_text() -> None:
    of = subject()
    scheme = scheme_of("int4", "static")
    for transform in ("none", "hadamard-16"):
        made = replacements_of(inputs(of, KINDS), scheme, transform, of.logits, [of.calibration])  # type: ignore[arg-type]
        seen: dict[str, float] = {}

        def watch(each: Replacement, seen: dict[str, float] = seen) -> object:
            def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen[each.input.name] = each.transform.inputs(args[0]).abs().max().item()

            return next(iter(each.input.linears.values())).register_forward_pre_hook(see)

        handles = [watch(each) for each in made]
        with torch.no_grad():
            of.logits(of.calibration)
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
        for each in made:
            assert each.activations is not None
            assert each.activations.largest is not None
            assert each.activations.largest.item() == pytest.approx(seen[each.input.name], rel=1e-6)


@pytest.mark.parametrize("transform", ["smooth", "smooth-all"])
def test_smoothing_factors_are_those_of_the_formula(transform: str) -> None:
    """s_j = max|X_j|^.5 / max|W_j|^.5, one for all maps that read the input."""
    of = subject()
    read: dict[str, list[Tensor]] = {}
    chosen = inputs(of, KINDS)
    handles = [
        each.first.register_forward_pre_hook(
            lambda module, args, name=each.name: read.setdefault(name, []).append(args[0])  # type: ignore[misc]
        )
        for each in chosen
    ]
    with torch.no_grad():
        of.logits(of.calibration)
    for handle in handles:
        handle.remove()
    for made in replacements_of(chosen, EXACT, transform, of.logits, of.calibration.split(3)):  # type: ignore[arg-type]
        each = made.input
        x = torch.cat(read[each.name]).flatten(0, 1)
        w = torch.cat([linear.weight for linear in each.linears.values()]).detach()
        factor = x.abs().max(0).values ** 0.5 / w.abs().max(0).values ** 0.5
        if transform == "smooth" and each.kind.endswith(".out"):
            factor = torch.ones_like(factor)
        torch.testing.assert_close(made.transform.inputs(x), x / factor, rtol=1e-12, atol=0)
        torch.testing.assert_close(made.transform.weights(w), w * factor, rtol=1e-12, atol=0)


def test_nvfp4_scales_are_those_of_the_formula() -> None:
    """One float32 scale amax / 2688 per token, and below it E4M3 of a block's amax / 6; weights: one per matrix."""
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(4)) * torch.logspace(-3, 3, 5)[:, None]
    scheme = SCHEMES["nvfp4"]
    assert scheme.weights is not None
    assert scheme.activations is not None
    for quantizer, peaks in ((scheme.activations, x.abs().amax(-1)), (scheme.weights, x.abs().amax().expand(5))):
        found = quantizer(x)
        for row, peak, values in zip(x, peaks, found, strict=True):
            outer = peak / 2688
            for at in range(0, 48, 16):
                block = row[at : at + 16]
                scale = e4m3(block.abs().amax() / 6 / outer) * outer
                expected = e2m1(block / scale) * scale if scale > 0 else torch.zeros(16)
                assert torch.equal(values[at : at + 16], expected)


def test_kept_tokens_are_those_of_the_mask_alone() -> None:
    of = subject()
    each = inputs(of, ("attention.in",))[0]
    (made,) = replacements_of([each], scheme_of("int4", only="activations"), "none", of.logits, [])
    x = torch.randn(2, 7, 48, dtype=torch.float64)
    mask = torch.rand(2, 7, generator=torch.Generator().manual_seed(5)) > 0.5
    rounded = Quantizer(Integer(4))(x)
    with quantized(of.model, [made]) as kept, torch.no_grad():
        kept.mask = mask
        (name, linear) = next(iter(each.linears.items()))
        found = of.model.get_submodule(name)(x)
    expected = torch.stack([
        torch.stack([x[b, t] if mask[b, t] else rounded[b, t] for t in range(7)]) for b in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(found, expected @ linear.weight.T + linear.bias)


def test_an_output_of_zeros_has_no_ratio() -> None:
    of = subject()
    first, second = inputs(of, ("feed_forward.out",))
    with torch.no_grad():
        first.first.weight.zero_()
        second.first.weight[0].zero_()
    made = replacements_of([first, second], SCHEMES["int4"], "none", of.logits, [])
    noise = noise_of(made, of.logits, [of.calibration])
    assert noise[first.name].output is None
    assert noise[first.name].weight_underflow is None
    assert 0 < (noise[second.name].output or 0) < 1
    found = measure(of, Options(SCHEMES["int4"], kinds=("feed_forward.out",)))
    assert set(found["output_sqnr_by_input"]) == {second.name}
    assert found["output_sqnr"]["feed_forward.out"] == found["output_sqnr_by_input"][second.name]
    with torch.no_grad():
        second.first.weight.zero_()
    assert measure(of, Options(SCHEMES["int4"], kinds=("feed_forward.out",)))["output_sqnr"] == {}


@pytest.mark.parametrize(("reach", "kept"), [("row", True), ("tensor", False), ("static", False)])
def test_first_tokens_are_kept_only_where_scales_are_per_token(reach: str, kept: bool) -> None:
    found = measure(subject(), Options(scheme_of("int4", reach), kinds=("attention.in",)))  # type: ignore[arg-type]
    assert (found["first_token_kept"] is not None) == kept


def test_kinds_that_no_input_has_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^small has no input of kind attention.inner: give one of attention.in, att"):
        measure(subject(), Options(SCHEMES["int4"], kinds=("attention.inner",)))


def test_a_hadamard_matrix_is_converted_once_and_computed_in_float64() -> None:
    matrix = hadamard(48, torch.float32)
    assert hadamard(48, torch.float32) is matrix
    exact = hadamard(48)
    torch.testing.assert_close(exact @ exact.T, torch.eye(48, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.equal(matrix, exact.float())


def test_underflow_is_counted_and_outliers_are_measured() -> None:
    of = subject()
    (each,) = replacements_of(inputs(of, ("feed_forward.out",))[:1], SCHEMES["int4"], "hadamard-16", of.logits, [])
    with torch.no_grad():
        each.input.first.weight[:, 0] = 0  # is no underflow, though the rotation makes something of it
    (each,) = replacements_of([each.input], SCHEMES["int4"], "hadamard-16", of.logits, [])
    read: list[Tensor] = []
    handle = each.input.first.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    found = noise_of([each], of.logits, of.calibration.split(3))[each.input.name]
    handle.remove()
    rotation = torch.block_diag(hadamard(16), hadamard(16))
    fractions = []
    for x in (torch.cat(read).flatten(0, 1) @ rotation, each.input.first.weight.detach() @ rotation):
        rounded = (x / (x.abs().amax(-1, keepdim=True) / 7)).round()
        fractions.append(((rounded == 0) & (x != 0)).double().sum().item() / (x != 0).sum().item())
    for x, peak in ((torch.cat(read), found.peak), (torch.cat(read) @ rotation, found.transformed_peak)):
        assert peak == pytest.approx((x.abs().amax(-1) / x.norm(dim=-1) * 32**0.5).mean().item(), rel=1e-9)
    assert [found.input_underflow, found.weight_underflow] == pytest.approx(fractions, rel=1e-3)
    assert all(0.01 < fraction < 0.5 for fraction in fractions)
    result = measure(of, Options(SCHEMES["int4"], "hadamard-16", kinds=("feed_forward.out",)))
    peaks = result["outliers_by_input"]
    assert len(peaks) == 2
    mean = sum(each["transformed"] for each in peaks.values()) / 2
    assert result["outliers"]["feed_forward.out"]["transformed"] == pytest.approx(mean)
    assert 0 < result["underflow"]["feed_forward.out"]["inputs"] < 0.5


def test_inputs_that_are_destroyed_are_named_and_rescued() -> None:
    """A channel that is large at every token, and that no map reads."""
    of = subject()
    assert measure(of, Options(SCHEMES["w8a8"]))["destroyed"]["rescued"] is None
    first, second = inputs(of, ("attention.in",))
    with torch.no_grad():
        of.model.decoder.blocks[0].attention_norm.norm.weight[5] *= 1e4  # type: ignore[union-attr, index]
        for linear in first.linears.values():
            linear.weight[:, 5] = 0
    found = measure(of, Options(SCHEMES["w8a8"]))
    assert found["output_sqnr_by_input"][first.name] < found["destroyed"]["below_db"] < 7
    assert found["output_sqnr_by_input"][second.name] > 20
    assert found["destroyed"]["inputs"] == [first.name]
    rest = [each for each in inputs(of, KINDS) if each.name != first.name]
    with quantized(of.model, replacements_of(rest, SCHEMES["w8a8"], "none", of.logits, [])):
        rescued = score(of.logits, of.rows.split(4)).loss
    assert found["destroyed"]["rescued"]["loss"] == rescued.mean().item()
    change = found["quantized"]["change"]["mean"]
    assert abs(found["destroyed"]["rescued"]["change"]["mean"]) < 0.1 * abs(change)


@pytest.mark.parametrize(
    "options",
    [
        Options(SCHEMES["int4"]),
        Options(SCHEMES["nvfp4"], "smooth"),
        Options(SCHEMES["int4"], method="gptq"),
        Options(scheme_of("int4", "static")),
        Options(scheme_of("fp8", "static"), method="gptq"),
    ],
)
def test_activations_that_are_not_finite_are_one_line(options: Options) -> None:
    of = subject()
    with torch.no_grad():
        of.model.decoder.blocks[1].feed_forward_norm.norm.weight[3] = torch.inf  # type: ignore[union-attr, index]
    with pytest.raises(UserError, match=r"^[^\n]* is NaN or infinite[^\n]*: look at the [^\n]*$"):
        measure(of, options)


def test_measure_reports_each_kind_alone() -> None:
    of = subject()
    found = measure(of, Options(SCHEMES["int4"], batch_size=2))
    assert set(found["kinds_alone"]) == {"attention.in", "attention.out", "feed_forward.in", "feed_forward.out"}
    (kind,) = [k for k in found["kinds_alone"] if k == "attention.out"]
    made = replacements_of(inputs(of, (kind,)), SCHEMES["int4"], "none", of.logits, [])
    with quantized(of.model, made):
        alone = score(of.logits, of.rows.split(2))
    assert found["kinds_alone"][kind]["loss"] == alone.loss.mean().item()
    assert found["quantized"]["change"]["mean"] == pytest.approx(found["quantized"]["loss"] - found["loss"])
    assert len(found["output_sqnr_by_input"]) == 8


def test_a_matrix_that_is_not_there_is_one_line() -> None:
    of = subject()
    each = inputs(of, ("attention.in",))[0]
    linear = nn.Linear(688, 3)
    other = SharedInput("blocks.0.feed_forward.out", "feed_forward.out", {"down": linear})
    with pytest.raises(UserError, match="no Hadamard matrix of 688 is known here: rotate blocks, with hadamard-16"):
        transform_of("hadamard", other, None)
    with pytest.raises(UserError, match="has 12 channels, which 16 does not divide"):
        transform_of("hadamard-16", SharedInput(each.name, each.kind, {"down": nn.Linear(12, 3)}), None)


@pytest.mark.parametrize("breakdown", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        Options(SCHEMES["w8a8"], batch_size=3),
        Options(SCHEMES["w8a8"], "smooth", "gptq", ("attention.in",), kv=True),
        Options(scheme_of("w8a8", "static"), kinds=("feed_forward.in",)),
        Options(SCHEMES["w4a16"]),
    ],
    ids=["plain", "calibrated", "static", "weights"],
)
def test_the_rows_that_are_read_are_known_beforehand(options: Options, breakdown: bool) -> None:
    of, wanted, lengths = subject(), replace(options, breakdown=breakdown), list[int]()

    def logits(batch: Tensor) -> Tensor:
        lengths.append(len(batch))
        return of.logits(batch)

    assert of.sites
    found = measure(replace(of, logits=logits), wanted)
    assert not (breakdown and found["destroyed"]["inputs"])
    assert sum(lengths) == rows_read(of, wanted, original=True) + 1  # and a row that finds the inputs


def test_without_a_breakdown_the_cost_is_the_same() -> None:
    whole, short = (measure(subject(), Options(SCHEMES["int4"], "smooth", breakdown=b)) for b in (True, False))
    assert short == {key: whole[key] for key in ("loss", "accuracy", "quantized", "folds")}
    assert {"kinds_alone", "sink_tokens", "output_sqnr"} <= whole.keys()
