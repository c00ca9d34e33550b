"""The table of folds: those called exact leave float64 outputs as they are, the others do not.

In float64, of two layers with random gains and biases, as a relative change of the largest logit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sinks.models.attention_gates import (
    ActivatedGate,
    AmplifyingHeadwiseGate,
    ElementwiseGate,
    HeadwiseGate,
    NoGate,
    TensorwiseGate,
    UnconditionalGate,
)
from sinks.models.clips import Clamp, ClippedNorm, NoClip
from sinks.models.decoder import Architecture
from sinks.models.exclusion import ExclusiveSelfAttention, LearnedExclusion
from sinks.models.feed_forward import GELU, SigmoidGLU, SwiGLU
from sinks.models.gated_norm import GatedNorm, GateDyT
from sinks.models.norms import DyT, IdentityNorm, PreAffine, RMSNorm
from sinks.quantize.folds import UNKNOWN, Fold, folds_of
from sinks.quantize.hadamard import hadamard
from sinks.quantize.measure import Options, measure
from sinks.quantize.schemes import SCHEMES
from sinks.quantize.subject import Subject
from tests.quantize.test_quantized_models import subject

WIDTH, HEAD = 64, 16
GROUPED = Architecture(
    d_model=WIDTH, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=HEAD, ffn_hidden=96, init_std=0.2, embedding_std=1.0,
    bias=True,
)  # fmt: skip
PLAIN = replace(GROUPED, n_kv_heads=4)
NORMS: dict[str, tuple[Callable[[int], nn.Module], bool, bool]] = {  # what it is, smoothing exact, rotation exact
    "RMSNorm": (RMSNorm, True, True),
    "PreAffine": (PreAffine, True, False),
    "GatedNorm": (GatedNorm, True, False),
    "GatedNorm, tensorwise": (partial(GatedNorm, granularity="tensorwise"), True, True),
    "GatedNorm over PreAffine": (partial(GatedNorm, norm=PreAffine), True, False),
    "DyT": (DyT, True, False),
    "GateDyT": (GateDyT, True, False),
    "ClippedNorm": (ClippedNorm, True, False),
    "IdentityNorm": (IdentityNorm, False, True),
}


def random_subject(architecture: Architecture = GROUPED, **parts: object) -> Subject:
    of = subject(architecture, **parts)
    with torch.no_grad():
        for p in of.model.parameters():
            if p.ndim == 1 and p.numel() > 1:
                p.add_(0.5 * torch.randn_like(p))
    return of


def change_of(of: Subject, fold: Callable[[nn.Module], None]) -> float:
    """Of the logits, relative to the largest, when the decoder's weights are changed."""
    tokens = of.rows[:, :-1]
    with torch.no_grad():
        before = of.logits(tokens)
        fold(of.model.decoder)  # type: ignore[arg-type]
        return ((of.logits(tokens) - before).abs().max() / before.abs().max()).item()


def core(norm: nn.Module) -> nn.Module:
    return core(norm.norm) if hasattr(norm, "norm") else norm  # type: ignore[arg-type]


def read_by(block: nn.Module) -> list[tuple[nn.Module, list[nn.Linear]]]:
    """The two norms of a block, and the maps that read them."""
    attention = [block.attention.query, block.attention.key, block.attention.value]  # type: ignore[union-attr]
    if hasattr(block.attention.gate, "projection"):  # type: ignore[union-attr]
        attention.append(block.attention.gate.projection)  # type: ignore[union-attr]
    hidden = [m for n, m in block.feed_forward.named_children() if n in ("up", "gate")]  # type: ignore[union-attr]
    return [(block.attention_norm.norm, attention), (block.feed_forward_norm.norm, hidden)]  # type: ignore[union-attr, list-item]


def factors(*size: int) -> Tensor:
    return torch.rand(*size, dtype=torch.float64) * 3 + 0.2


def scale_rows(linear: nn.Linear, s: Tensor) -> None:
    linear.weight.mul_(s[:, None])
    linear.bias.mul_(s)


def smooth_norms(decoder: nn.Module) -> None:
    for block in decoder.blocks:  # type: ignore[union-attr]
        for norm, readers in read_by(block):
            s = factors(WIDTH)
            if isinstance(norm, GatedNorm):
                norm.down.weight.mul_(s)
            for name, p in core(norm).named_parameters(recurse=False):
                if name in ("weight", "bias"):
                    p.div_(s)
            for linear in readers:
                linear.weight.mul_(s)


def rotate_stream(decoder: nn.Module) -> None:
    matrix = hadamard(WIDTH)
    places = [place for block in decoder.blocks for place in read_by(block)]  # type: ignore[union-attr]
    for norm, readers in [*places, (decoder.head_norm.norm, [decoder.head])]:  # type: ignore[union-attr, list-item]
        readers = [*readers, norm.down] if isinstance(norm, GatedNorm) else readers
        gain = getattr(core(norm), "weight", None)
        for linear in readers:
            if gain is not None:
                linear.weight.mul_(gain)
            linear.weight.copy_(linear.weight @ matrix)
        if gain is not None:
            gain.fill_(1)
    decoder.embedding.weight.copy_(decoder.embedding.weight @ matrix)  # type: ignore[union-attr, operator]
    for block in decoder.blocks:  # type: ignore[union-attr]
        for linear in (block.attention.out, block.feed_forward.down):  # type: ignore[union-attr]
            linear.weight.copy_(matrix.T @ linear.weight)
            linear.bias.copy_(linear.bias @ matrix)


def smooth_values(decoder: nn.Module, shared: bool = True) -> None:
    """`shared`: one factor for the query heads that share a value; else each its own, the value its first head's."""
    for block in decoder.blocks:  # type: ignore[union-attr]
        attention = block.attention
        heads, held = attention.config.n_heads, attention.config.n_kv_heads  # type: ignore[union-attr]
        s = factors(heads, HEAD)
        of_value = s[:: heads // held]
        scale_rows(attention.value, 1 / of_value.flatten())  # type: ignore[union-attr, arg-type]
        s = of_value.repeat_interleave(heads // held, 0) if shared else s
        attention.out.weight.mul_(s.flatten())  # type: ignore[union-attr, operator]


def rotate_values(decoder: nn.Module) -> None:
    for block in decoder.blocks:  # type: ignore[union-attr]
        attention = block.attention
        of_values, of_heads = (
            torch.block_diag(*[hadamard(HEAD)] * n)
            for n in (attention.config.n_kv_heads, attention.config.n_heads)  # type: ignore[union-attr]
        )
        attention.value.weight.copy_(of_values.T @ attention.value.weight)  # type: ignore[union-attr, operator]
        attention.value.bias.copy_(attention.value.bias @ of_values)  # type: ignore[union-attr, operator]
        attention.out.weight.copy_(attention.out.weight @ of_heads)  # type: ignore[union-attr, operator]


def smooth_hidden(decoder: nn.Module) -> None:
    for block in decoder.blocks:  # type: ignore[union-attr]
        s = factors(96)
        scale_rows(block.feed_forward.up, 1 / s)  # type: ignore[union-attr, arg-type]
        block.feed_forward.down.weight.mul_(s)  # type: ignore[union-attr, operator]


def assert_held(fold: Fold, change: float) -> None:
    assert fold.exact is not None
    assert change < 1e-10 if fold.exact else change > 1e-4, (fold, change)


@pytest.mark.parametrize("gate", [NoGate, HeadwiseGate, ElementwiseGate])
@pytest.mark.parametrize("name", NORMS)
def test_factors_folded_into_a_norm(name: str, gate: type) -> None:
    norm, exact, _ = NORMS[name]
    of = random_subject(norm=norm, attention_gate=gate)
    folds = folds_of("smooth", of.inputs(), of.around)
    assert {kind: fold.exact for kind, fold in folds.items()} == {"attention.in": exact, "feed_forward.in": exact}
    for fold in folds.values():
        assert_held(fold, change_of(random_subject(norm=norm, attention_gate=gate), smooth_norms))


@pytest.mark.parametrize("transform", ["hadamard", "hadamard-16"])
@pytest.mark.parametrize("name", NORMS)
def test_a_rotated_stream(name: str, transform: str) -> None:
    norm, _, exact = NORMS[name]
    of = random_subject(norm=norm)
    folds = folds_of(transform, of.inputs(), of.around)  # type: ignore[arg-type]
    assert folds["attention.in"].exact is folds["feed_forward.in"].exact is exact
    assert_held(folds["attention.in"], change_of(of, rotate_stream))


def test_a_rotated_stream_that_a_gate_reads_in_part() -> None:
    of = random_subject(attention_gate=partial(HeadwiseGate, dimensions=WIDTH))
    fold = folds_of("hadamard", of.inputs(), of.around)["attention.in"]
    assert fold.exact is True
    assert_held(fold, change_of(of, rotate_stream))
    of = random_subject(attention_gate=partial(HeadwiseGate, dimensions=4))
    assert folds_of("hadamard", of.inputs(), of.around)["attention.in"].exact is False


@pytest.mark.parametrize("clip", [NoClip, partial(Clamp, threshold=2.0)])
def test_a_rotated_stream_that_is_clamped(clip: Callable[[str], nn.Module]) -> None:
    of = random_subject(residual_clip=clip)
    fold = folds_of("hadamard", of.inputs(), of.around)["attention.in"]
    assert fold.exact is (clip is NoClip)
    assert_held(fold, change_of(of, rotate_stream))
    of = random_subject(residual_clip=clip)
    assert_held(folds_of("smooth", of.inputs(), of.around)["attention.in"], change_of(of, smooth_norms))


@pytest.mark.parametrize("gate", [NoGate, HeadwiseGate, ElementwiseGate, UnconditionalGate])
def test_factors_folded_into_the_values(gate: type) -> None:
    of = random_subject(PLAIN, attention_gate=gate)
    fold = folds_of("smooth-all", of.inputs(), of.around)["attention.out"]
    assert fold.exact
    assert_held(fold, change_of(of, smooth_values))
    of = random_subject(GROUPED, attention_gate=gate)
    fold = folds_of("smooth-all", of.inputs(), of.around)["attention.out"]
    assert not fold.exact
    assert_held(fold, change_of(of, partial(smooth_values, shared=False)))
    assert change_of(random_subject(GROUPED, attention_gate=gate), smooth_values) < 1e-10  # what would be exact


@pytest.mark.parametrize(
    ("gate", "exact"),
    [
        (NoGate, True), (HeadwiseGate, True), (TensorwiseGate, True), (AmplifyingHeadwiseGate, True),
        (partial(ActivatedGate, activation="tanh", gate=HeadwiseGate), True),
        (ElementwiseGate, False), (partial(ActivatedGate, activation="silu"), False), (UnconditionalGate, False),
    ],
)  # fmt: skip
def test_rotated_values(gate: Any, exact: bool) -> None:
    of = random_subject(attention_gate=gate)
    fold = folds_of("hadamard-16", of.inputs(), of.around)["attention.out"]
    assert fold.exact is exact
    assert_held(fold, change_of(of, rotate_values))
    assert folds_of("hadamard", of.inputs(), of.around)["attention.out"].exact is False


@pytest.mark.parametrize("exclusion", [ExclusiveSelfAttention, LearnedExclusion])
def test_values_under_exclusive_self_attention_are_rotated_and_not_scaled(exclusion: type) -> None:
    of = random_subject(PLAIN, exclusion=exclusion)
    fold = folds_of("smooth-all", of.inputs(), of.around)["attention.out"]
    assert fold.exact is False
    assert_held(fold, change_of(of, smooth_values))
    of = random_subject(PLAIN, exclusion=exclusion)
    fold = folds_of("hadamard-16", of.inputs(), of.around)["attention.out"]
    assert fold.exact is True
    assert_held(fold, change_of(of, rotate_values))


@pytest.mark.parametrize(("feed_forward", "exact"), [(SwiGLU, True), (SigmoidGLU, True), (GELU, False)])
def test_factors_folded_into_the_hidden_layer(feed_forward: type, exact: bool) -> None:
    of = random_subject(feed_forward=feed_forward)
    fold = folds_of("smooth-all", of.inputs(), of.around)["feed_forward.out"]
    assert fold.exact is exact
    assert_held(fold, change_of(of, smooth_hidden))
    assert folds_of("hadamard", of.inputs(), of.around)["feed_forward.out"].exact is False


def test_what_is_not_quantized_counts_in_the_table_too() -> None:
    of = random_subject(GROUPED)
    found = measure(of, Options(SCHEMES["int4"], "smooth-all", kinds=("attention.out",)))
    assert list(found["folds"]) == ["attention.out"]
    assert found["folds"]["attention.out"]["exact"] is False


def test_only_kinds_that_a_transform_changes_are_in_the_table() -> None:
    of = random_subject()
    assert folds_of("none", of.inputs(), of.around) == {}
    assert set(folds_of("smooth", of.inputs(), of.around)) == {"attention.in", "feed_forward.in"}
    assert len(folds_of("smooth-all", of.inputs(), of.around)) == 4


def test_values_that_one_map_makes_together_are_not_known() -> None:
    of = random_subject()
    inputs = [
        replace(each, linears=dict(list(each.linears.items())[:1])) if each.kind == "attention.in" else each
        for each in of.inputs()
    ]
    assert folds_of("smooth-all", inputs, of.around)["attention.out"] == UNKNOWN


def test_a_norm_of_ones_own_is_not_known() -> None:
    class Mine(RMSNorm):
        pass

    of = random_subject(norm=Mine)
    assert folds_of("smooth", of.inputs(), of.around)["attention.in"] == UNKNOWN
    assert folds_of("hadamard", of.inputs(), of.around)["attention.in"] == UNKNOWN
