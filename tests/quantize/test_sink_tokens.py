"""Sink tokens by detection, what quantization costs there and elsewhere, and what is left when they are kept."""

import pytest
import torch

from sinks.models.normalizers import KeyValueBias
from sinks.observe import sites_of
from sinks.quantize.linear import quantized
from sinks.quantize.measure import Options, measure, measure_original, paired_change, score
from sinks.quantize.replacements import replacements_of
from sinks.quantize.schemes import SCHEMES, scheme_of
from sinks.quantize.sink_tokens import sink_tokens
from sinks.quantize.subject import Subject
from tests.quantize.test_quantized_models import inputs, subject


def with_sinks() -> Subject:
    """Sharp attention, in which a few keys are preferred by all queries."""
    of = subject()
    with torch.no_grad():
        for name, weight in of.model.named_parameters():
            if name.endswith("query_norm.weight"):
                weight.mul_(6)
    return of


def test_sinks_are_the_keys_that_receive_much_mass() -> None:
    """By the definition, from T x T maps in float64."""
    of = with_sinks()
    tokens = of.rows[:, :-1]
    found = sink_tokens(of.sites, of.logits, tokens.split(3))
    with torch.no_grad():
        maps = of.model.decoder.attention_maps(tokens)  # type: ignore[union-attr, operator]
    alpha = maps.sum(-2) / torch.arange(24, 0, -1)  # [layers, B, H, T]
    expected = (alpha > 0.3).any(0).any(1)
    expected[:, 12:] = False
    assert found is not None
    assert [len(mask) for mask in found] == [3, 1]
    assert torch.equal(torch.cat(found), expected)
    assert 0 < expected.sum() < expected.numel() / 2


def test_where_the_mass_of_a_key_is_not_defined_there_are_none() -> None:
    of = subject(normalizer=KeyValueBias)
    assert sink_tokens(of.sites, of.logits, [of.rows[:, :-1]]) is None
    found = measure(of, Options(SCHEMES["int4"], kinds=("attention.out",)))
    assert found["sink_tokens"] is None
    assert found["quantized"]["change"]["mean"] != 0


def test_the_cost_at_sink_tokens_and_elsewhere_and_without_them() -> None:
    of = with_sinks()
    options = Options(scheme_of("int4", only="activations"), batch_size=3)
    found = measure(of, options)
    original = measure_original(of, options)
    assert original.sinks is not None
    sinks = torch.cat(list(original.sinks))
    made = replacements_of(inputs(of), scheme_of("int4", only="activations"), "none", of.logits, [])
    with quantized(of.model, made) as kept:
        change = score(of.logits, of.rows.split(3)).loss - original.scores.loss
        kept_change = score(of.logits, of.rows.split(3), kept, original.sinks).loss - original.scores.loss
    split = found["sink_tokens"]
    assert split["fraction"] == sinks.double().mean().item()
    assert split["first_token_fraction"] == sinks[:, 0].double().mean().item()
    assert split["change_at_sinks"]["mean"] == pytest.approx(change[sinks].mean().item(), rel=1e-9)
    assert split["change_elsewhere"]["mean"] == pytest.approx(change[~sinks].mean().item(), rel=1e-9)
    assert split["kept"]["change"]["mean"] == pytest.approx(kept_change.mean().item(), rel=1e-9)
    assert split["kept"]["change"] != found["quantized"]["change"] != found["first_token_kept"]["change"]
    whole = found["quantized"]["change"]["mean"]
    fraction = sinks.double().mean().item()
    parts = split["change_at_sinks"]["mean"] * fraction + split["change_elsewhere"]["mean"] * (1 - fraction)
    assert parts == pytest.approx(whole, rel=1e-9)


def test_an_interval_over_rows_that_have_no_such_token() -> None:
    before = torch.zeros(3, 4, dtype=torch.float64)
    after = torch.arange(3.0, dtype=torch.float64)[:, None].expand(3, 4)
    where = torch.zeros(3, 4, dtype=torch.bool)
    where[1, :2] = where[2, 0] = True
    found = paired_change(before, after, 0, where)
    assert found["mean"] == pytest.approx((1 + 1 + 2) / 3)
    assert (found["low"], found["high"]) == (1.0, 2.0)  # one row of the two drawn alone
    assert paired_change(before, after, 0)["mean"] == pytest.approx(1.0)


def test_reading_changes_nothing() -> None:
    of = with_sinks()
    before = score(of.logits, of.rows.split(2))
    sink_tokens(sites_of(of.model), of.logits, [of.rows[:, :-1]])
    assert torch.equal(score(of.logits, of.rows.split(2)).loss, before.loss)
