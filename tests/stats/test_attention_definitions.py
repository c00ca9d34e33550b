"""Attention: every definition against plain loops in float64, on random weights and on heads with known mass."""

import math
from statistics import fmean, median, pstdev
from typing import Any

import pytest
import torch
from sink_kernels import Statistic, attention
from torch import Tensor

from sinks.stats import functional as F
from sinks.stats.accumulators import add
from tests.stats.cases import weights

SHAPES = [(1, 1, 2), (3, 2, 7), (2, 4, 33)]


def random_weights(shape: tuple[int, int, int], seed: int = 1) -> Tensor:
    return weights(*shape, torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: object, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_masses_and_effective_rescale(shape: tuple[int, int, int]) -> None:
    a = random_weights(shape)
    found = F.attention_statistics(F.attention_accumulators(a[..., 0].float(), a[..., -1].float(), (0.1, 0.3, 0.5)))
    samples, heads, length = a.tolist(), shape[1], shape[2]
    for head in range(heads):
        rows = [row for sample in samples for row in sample[head]]
        later = [row for sample in samples for row in sample[head][1:]]
        left = [sum(row[1:-1]) for row in later]
        close(found["first_token_mass"][head], fmean(row[0] for row in later))
        close(found["first_token_mass_with_first_row"][head], fmean(row[0] for row in rows))
        close(found["learned_sink_mass"][head], fmean(1 - sum(row[:-1]) for row in rows))
        close(found["effective_rescale"][head], fmean(left))
        close(found["effective_rescale_cv"][head], pstdev(left) / fmean(left), rtol=1e-4)
        for eps in (0.1, 0.3, 0.5):
            alphas = [sum(row[0] for row in sample[head]) / length for sample in samples]
            close(found[f"sink_ratio_{eps}"][head], fmean(alpha > eps for alpha in alphas))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positions", [1, 5])
def test_both_sink_ratios(shape: tuple[int, int, int], positions: int) -> None:
    a = random_weights(shape)
    batch, heads, length = shape
    mass = a[..., :-1].sum(2).float()
    found = F.key_mass_statistics(F.key_mass_accumulators(mass, positions, (0.2, 0.3)))
    assert found["alpha"].shape == (heads, positions)
    for head in range(heads):
        for k in range(min(positions, length)):
            alphas = [fmean(float(a[b, head, i, k]) for i in range(k, length)) for b in range(batch)]
            close(found["alpha"][head, k], fmean(alphas))
            for eps in (0.2, 0.3):
                close(found[f"sink_gu_{eps}"][head, k], fmean(alpha > eps for alpha in alphas))
        assert found["alpha"][head, length:].isnan().all()
        largest = [
            max(sum(float(a[b, head, i, k]) for i in range(length)) / length for k in range(length // 2))
            for b in range(batch)
        ]
        close(found["nyu_largest"][head], fmean(largest))
        close(found["sink_nyu"][head], fmean(x > 0.3 for x in largest))


def test_the_two_sink_ratios_disagree_about_a_sink_at_key_3() -> None:
    """Key 3 of 8 gets 0.55 of every query from 3 on: 0.55 for Gu at k = 3, 5 / 8 * 0.55 = 0.34 for NYU at any k."""
    a = torch.zeros(1, 1, 8, 8)
    a[..., torch.arange(8), torch.arange(8)] = 1.0
    a[0, 0, 3:, 3] = 0.55
    a[0, 0, torch.arange(4, 8), torch.arange(4, 8)] = 0.45
    a[0, 0, 3, 2] = 0.45
    found = F.key_mass_statistics(F.key_mass_accumulators(a.sum(2), thresholds=(0.3, 0.5)))
    close(found["alpha"][0, 3], 0.55)
    assert found["sink_gu_0.5"][0].tolist() == [0, 0, 0, 1]
    close(found["nyu_largest"][0], 5 / 8 * 0.55)
    assert found["sink_nyu"][0] == 1


def test_a_sink_in_the_second_half_is_none_for_nyu() -> None:
    a = torch.zeros(1, 1, 4, 4)
    a[0, 0, torch.arange(4), torch.arange(4)] = 1.0
    a[0, 0, 3] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    found = F.key_mass_statistics(F.key_mass_accumulators(a.sum(2)))
    assert found["alpha"][0, 2] == 1
    close(found["nyu_largest"][0], 0.25)


def test_half_of_three_keys_is_one_for_nyu() -> None:
    found = F.key_mass_statistics(F.key_mass_accumulators(torch.tensor([[[0.6, 2.1, 0.3]]])))
    close(found["nyu_largest"][0], 0.2)
    assert found["sink_nyu"][0] == 0


def test_a_head_of_known_mass() -> None:
    """Head h puts h / 4 on token 0 in every query that has a choice, and the rest on itself."""
    length, share = 6, torch.arange(5) / 4
    a = torch.zeros(2, 5, length, length)
    a[:, :, 0, 0] = 1
    for i in range(1, length):
        a[:, :, i, 0], a[:, :, i, i] = share, 1 - share
    found = F.attention_statistics(F.attention_accumulators(a[..., 0], torch.zeros(2, 5, length)))
    torch.testing.assert_close(found["first_token_mass"], share)
    torch.testing.assert_close(found["first_token_mass_with_first_row"], (1 + 5 * share) / 6)
    torch.testing.assert_close(found["effective_rescale"], 1 - share)
    torch.testing.assert_close(found["effective_rescale_cv"][:4], torch.zeros(4), atol=1e-6, rtol=0)
    assert found["effective_rescale_cv"][4].isnan()  # nothing is left, and nothing varies
    alpha = F.key_mass_statistics(F.key_mass_accumulators(a.sum(2)))["alpha"]
    torch.testing.assert_close(alpha[:, 0], (1 + 5 * share) / 6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sinks", [0, 1])
def test_entropy_and_logits(shape: tuple[int, int, int], sinks: int) -> None:
    batch, heads, length = shape
    logits = torch.randn(*shape, length, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found_entropy, found_logit = torch.zeros(shape), torch.zeros(shape)
    entropies: dict[int, list[float]] = {h: [] for h in range(heads)}
    shares: dict[int, list[float]] = {h: [] for h in range(heads)}
    largest: dict[int, list[float]] = {h: [] for h in range(heads)}
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                row = [float(x) for x in logits[b, h, i, : i + 1]]
                powers = [math.exp(x) for x in row + [0.5] * sinks]
                p = [x / sum(powers) for x in powers]
                entropy = -sum(x * math.log(x) for x in p)
                entropies[h].append(entropy)
                largest[h].append(max(row))
                if len(p) > 1:
                    shares[h].append(entropy / math.log(len(p)))
                found_entropy[b, h, i], found_logit[b, h, i] = entropy, max(row)
    found = F.attention_row_statistics(F.attention_row_accumulators(found_entropy, found_logit, sinks))
    for h in range(heads):
        close(found["entropy"][h], fmean(entropies[h]))
        close(found["logit_mean"][h], fmean(largest[h]))
        close(found["logit_max"][h], max(largest[h]))
        if shares[h]:
            close(found["entropy_share"][h], fmean(shares[h]))
        else:
            assert found["entropy_share"][h].isnan()


def test_uniform_attention_has_all_of_the_possible_entropy() -> None:
    visible = torch.arange(1, 13).float().expand(2, 3, 12)
    found = F.attention_row_statistics(F.attention_row_accumulators(visible.log(), torch.zeros(2, 3, 12)))
    torch.testing.assert_close(found["entropy_share"], torch.ones(3))


def test_sink_value_ratio() -> None:
    v = torch.randn(2, 3, 6, 4)
    v[:, :, 0] *= 0.01
    found = F.value_statistics(F.value_accumulators(v))["value_norm_ratio"]
    for head in range(3):
        ratios = []
        for b in range(2):
            norms = [math.hypot(*token) for token in v[b, head].double().tolist()]
            ratios.append(norms[0] / median(norms[1:]))
        close(found[head], fmean(ratios))


# -- contribution beside mass ---------------------------------------------------------------------------------------


def contribution_by_loops(a: Tensor, v: Tensor, out_weight: Tensor, n_heads: int) -> tuple[list[float], list[float]]:
    """Contribution share and mass share of each head, by projecting every value."""
    batch, _, length, head_dim = v.shape
    group = n_heads // v.shape[1]
    shares, masses = [], []
    for h in range(n_heads):
        w = out_weight.double()[:, h * head_dim : (h + 1) * head_dim]
        share, mass = [], []
        for b in range(batch):
            parts = [(w @ v[b, h // group, j].double()) for j in range(length)]
            for i in range(1, length):
                row = a[b, h, i].double()
                sizes = [float(row[j]) * math.sqrt(sum(float(x) ** 2 for x in parts[j])) for j in range(i + 1)]
                share.append(sizes[0] / sum(sizes))
                mass.append(float(row[0]))
        shares.append(fmean(share))
        masses.append(fmean(mass))
    return shares, masses


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (4, 4), (6, 2)])
@pytest.mark.parametrize("normalizer", ["softmax", "off_by_one"])
def test_contribution_share_and_key_mass_from_the_attention_call(
    n_heads: int, n_kv_heads: int, normalizer: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    batch, length, head_dim, d_model = 2, 9, 8, 10
    q = torch.randn(batch, n_heads, length, head_dim, generator=generator)
    k = torch.randn(batch, n_kv_heads, length, head_dim, generator=generator)
    v = torch.randn(batch, n_kv_heads, length, head_dim, generator=generator)
    v[:, :, 0] *= 0.2
    out_weight = torch.randn(d_model, n_heads * head_dim, generator=generator)

    norms = F.projected_value_norms(v, out_weight, n_heads)
    stats: tuple[Statistic, ...] = ("first_key_mass", "key_mass")
    _, taken = attention(q, k, v, normalizer=normalizer, stats=stats, numbers=norms[..., None])
    accumulators = F.contribution_accumulators(taken["first_key_mass"], norms, taken["weighted_sum"][..., 0])
    found = F.contribution_statistics(accumulators)

    logits = q.double() @ k.double().repeat_interleave(n_heads // n_kv_heads, 1).transpose(-1, -2) * head_dim**-0.5
    powers = logits.exp().tril()
    a = powers / (powers.sum(-1, keepdim=True) + (normalizer == "off_by_one"))
    shares, masses = contribution_by_loops(a, v, out_weight, n_heads)
    close(found["contribution_share"], shares)
    close(found["mass_share"], masses)
    close(found["contribution_over_mass"], [s / m for s, m in zip(shares, masses, strict=True)])
    assert not found["undefined_rows"].any()

    alpha = F.key_mass_statistics(F.key_mass_accumulators(taken["key_mass"], positions=length))["alpha"]
    naive = torch.stack([a[:, :, j:, j].mean(2) for j in range(length)], -1).mean(0)
    torch.testing.assert_close(alpha.double(), naive, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["sigmoid", "clipped_softmax"])
def test_contribution_of_unnormalized_attention_is_a_fraction_of_the_row(normalizer: str) -> None:
    generator = torch.Generator().manual_seed(5)
    batch, n_heads, n_kv_heads, length, head_dim = 2, 4, 2, 9, 8
    q = 2 * torch.randn(batch, n_heads, length, head_dim, generator=generator)
    k = torch.randn(batch, n_kv_heads, length, head_dim, generator=generator)
    v = torch.randn(batch, n_kv_heads, length, head_dim, generator=generator)
    out_weight = torch.randn(10, n_heads * head_dim, generator=generator)
    options: dict[str, Any] = {"bias": -2.0} if normalizer == "sigmoid" else {"clip": (-0.1, 1.0)}
    options["normalizer"] = normalizer
    norms = F.projected_value_norms(v, out_weight, n_heads)
    _, taken = attention(q, k, v, stats=("first_key_mass",), numbers=norms[..., None], **options)
    accumulators = F.contribution_accumulators(taken["first_key_mass"], norms, taken["weighted_sum"][..., 0])
    found = F.contribution_statistics(accumulators)

    logits = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) * head_dim**-0.5
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    if normalizer == "sigmoid":
        a = torch.sigmoid(logits - 2.0).masked_fill(hidden, 0.0)
    else:
        a = (1.1 * logits.masked_fill(hidden, -torch.inf).softmax(-1) - 0.1).clamp(0, 1)
    assert (a.sum(-1) > 0).all()
    shares, masses = contribution_by_loops(a / a.sum(-1, keepdim=True), v, out_weight, n_heads)
    close(found["contribution_share"], shares)
    close(found["mass_share"], masses)


def test_a_sink_without_a_value_has_mass_and_no_contribution() -> None:
    a = random_weights((2, 2, 7))[..., :-1].float()
    norms = torch.ones(2, 2, 7)
    norms[..., 0] = 0
    found = F.contribution_statistics(F.contribution_accumulators(a[..., 0], norms, (a * norms[:, :, None]).sum(-1)))
    assert not found["contribution_share"].any()
    assert (found["mass_share"] > 0).all()
    assert not found["contribution_over_mass"].any()


def test_equal_values_contribute_their_mass() -> None:
    a = random_weights((2, 3, 7))[..., :-1].float()
    a = a / a.sum(-1, keepdim=True)
    norms = torch.full((2, 3, 7), 2.5)
    found = F.contribution_statistics(F.contribution_accumulators(a[..., 0], norms, (a * norms[:, :, None]).sum(-1)))
    torch.testing.assert_close(found["contribution_share"], found["mass_share"])
    torch.testing.assert_close(found["projected_norm_ratio"], torch.ones(3))


def test_rows_without_any_mass_are_excluded_and_counted() -> None:
    mass, norms = torch.full((1, 1, 5), 0.5), torch.ones(1, 1, 5)
    totals = torch.ones(1, 1, 5)
    mass[..., 2] = totals[..., 2] = 0
    found = F.contribution_statistics(F.contribution_accumulators(mass, norms, totals))
    assert found["contribution_share"] == 0.5
    assert found["mass_share"] == 0.5
    assert found["undefined_rows"] == 0.25


# -- gates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowest", [0.0, -0.5], ids=["of one sign", "of both signs"])
@pytest.mark.parametrize("width", [None, 5])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_attention_gates(width: int | None, length: int, lowest: float) -> None:
    shape = (3, 2, length) if width is None else (3, 2, length, width)
    gate = lowest + torch.rand(shape, generator=torch.Generator().manual_seed(6)) ** 2
    found = F.attention_gate_statistics(F.attention_gate_accumulators(gate))
    nested = (gate.unsqueeze(-1) if width is None else gate).double().tolist()
    for head in range(2):
        every = [g for sample in nested for token in sample[head] for g in token]
        first = [g for sample in nested for g in sample[head][0]]
        rest = [g for sample in nested for token in sample[head][1:] for g in token]
        close(found["gate_mean"][head], fmean(every))
        close(found["gate_std"][head], pstdev(every))
        close(found["gate_closed"][head], fmean(abs(g) < 0.1 for g in every))
        close(found["gate_first"][head], fmean(first))
        if rest:
            close(found["gate_rest"][head], fmean(rest))
            close(found["gate_first_over_rest"][head], fmean(map(abs, first)) / fmean(map(abs, rest)))
        else:
            assert found["gate_rest"][head].isnan()


def test_a_constant_gate_does_not_vary() -> None:
    found = F.attention_gate_statistics(F.attention_gate_accumulators(torch.full((3, 2, 9, 7), 0.3)))
    assert (found["gate_std"] < 1e-7).all()
    assert (found["gate_first_over_rest"] == 1).all()
    closed = F.attention_gate_statistics(F.attention_gate_accumulators(torch.zeros(3, 2, 9)))
    assert (closed["gate_closed"] == 1).all()
    assert not closed["gate_std"].any()


def test_one_token() -> None:
    one = torch.ones(2, 3, 1)
    found = F.attention_statistics(F.attention_accumulators(one, one * 0))
    assert found["first_token_mass"].isnan().all()
    assert (found["first_token_mass_with_first_row"] == 1).all()
    assert (found["sink_ratio_0.3"] == 1).all()
    by_key = F.key_mass_statistics(F.key_mass_accumulators(one))
    assert by_key["alpha"][:, 0].tolist() == [1, 1, 1]
    assert by_key["sink_nyu"].isnan().all()
    rows = F.attention_row_statistics(F.attention_row_accumulators(one * 0, one))
    assert not rows["entropy"].any()
    assert rows["entropy_share"].isnan().all()
    accumulators = F.value_accumulators(torch.ones(2, 3, 1, 4))
    assert F.value_statistics(accumulators)["value_norm_ratio"].isnan().all()
    more = add(accumulators, F.value_accumulators(torch.ones(2, 3, 2, 4)))
    assert (F.value_statistics(more)["value_norm_ratio"] == 1).all()
