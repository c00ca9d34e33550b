"""Residual: every definition against plain loops in float64, on random and on planted data."""

import math
from statistics import fmean, median_low, pstdev

import pytest
import torch
from torch import Tensor

from sinks.stats import functional as F

SHAPES = [(1, 2, 4), (3, 7, 11), (2, 33, 16), (2, 5, 1)]
Nested = list[list[list[float]]]


def residual(shape: tuple[int, int, int], seed: int = 4) -> Tensor:
    """Channels of different size, one of them far from zero if there are enough."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(*shape, generator=generator) * torch.linspace(0.5, 2, shape[-1])
    h[..., shape[-1] // 2] += 3
    return h


def later(nested: Nested) -> list[list[float]]:
    return [token for sample in nested for token in sample[1:]]


def close(found: Tensor, expected: object, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-6, equal_nan=True
    )


def planted_sink(dimension: int = 13, size: float = 40.0) -> Tensor:
    """A residual sink: one channel is large at all tokens."""
    h = residual((4, 50, 32))
    h[..., dimension] = size
    return h


# -- kurtosis -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_kurtosis_family(shape: tuple[int, int, int]) -> None:
    h = residual(shape)
    tokens, channels = later(h.double().tolist()), shape[-1]
    token, osp = [], []
    for x in tokens:
        deviation = pstdev(x)
        token.append(fmean((a - fmean(x)) ** 4 for a in x) / deviation**4)
        osp.append(max(0.0, fmean(a**4 for a in x) / deviation**4 - 3))
    neuron = [math.sqrt(fmean(x[j] ** 2 for x in tokens)) for j in range(channels)]
    found = F.kurtosis_statistics(F.kurtosis_accumulators(h))
    close(found["kurtosis_token"], fmean(token))
    close(found["kurtosis_excess"], fmean(token) - 3)
    close(found["kurtosis_osp"], fmean(osp))
    close(found["kurtosis_neuron"], fmean(s**4 for s in neuron) / fmean(s**2 for s in neuron) ** 2)
    close(F.residual_statistics(F.residual_accumulators(h))["kurtosis"], fmean(token))


def test_kurtosis_reaches_its_bounds() -> None:
    one_hot = torch.zeros(2, 9, 32)
    one_hot[..., 5] = 7.0
    found = F.kurtosis_statistics(F.kurtosis_accumulators(one_hot))
    close(found["kurtosis_neuron"], 32.0)
    alike = torch.ones(2, 9, 32)
    alike[..., ::2] = -1
    found = F.kurtosis_statistics(F.kurtosis_accumulators(alike))
    close(found["kurtosis_neuron"], 1.0)
    close(found["kurtosis_token"], 1.0)
    normal = torch.randn(8, 65, 4096, generator=torch.Generator().manual_seed(0))
    found = F.kurtosis_statistics(F.kurtosis_accumulators(normal))
    close(found["kurtosis_token"], 3.0, rtol=1e-2)


def test_outliers_that_wander_show_in_the_token_kurtosis_alone() -> None:
    h = residual((2, 65, 64)) * 0 + torch.randn(2, 65, 64, generator=torch.Generator().manual_seed(1))
    for i in range(65):
        h[:, i, i % 64] = 100.0
    found = F.kurtosis_statistics(F.kurtosis_accumulators(h))
    assert found["kurtosis_token"] > 50
    assert found["kurtosis_neuron"] < 1.1


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_kurtosis_does_not_depend_on_scale(scale: float) -> None:
    h = residual((3, 7, 11))
    expected = F.kurtosis_statistics(F.kurtosis_accumulators(h))
    found = F.kurtosis_statistics(F.kurtosis_accumulators(h * scale))
    for name in ("kurtosis_token", "kurtosis_osp"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


# -- massive activations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_massive_activations(shape: tuple[int, int, int]) -> None:
    h = residual(shape) * 0.05
    h[:, 0, 0] = 300.0
    h[-1, -1, -1] = -30.0
    nested = h.double().tolist()
    magnitudes = [[[abs(x) for x in token] for token in sample] for sample in nested]
    flat = [[x for token in sample for x in token] for sample in magnitudes]
    every = [token for sample in magnitudes for token in sample]
    found = F.massive_statistics(F.massive_accumulators(h))
    by_token = [sum(x > 100 and x > 1000 * median_low(token) for x in token) for token in every]
    by_tensor = [sum(x > 100 and x > 1000 * median_low(sample) for x in sample) for sample in flat]
    close(found["massive_per_token_median"], sum(by_token) / shape[0])
    close(found["massive_per_tensor_median"], sum(by_tensor) / shape[0])
    for c in (100, 300, 1000):
        token_share = fmean(max(token) > c * median_low(token) for token in every)
        close(found[f"relative_{c}_per_token_median"], token_share)
        close(found[f"relative_{c}_per_tensor_median"], fmean(max(s) > c * median_low(s) for s in flat))
    top = [[sorted(sample, reverse=True)[rank] / median_low(sample) for sample in flat] for rank in range(3)]
    close(found["top_over_median"], [fmean(x) for x in top])
    ratios = [max(token) / median_low(token) for token in later(magnitudes)]
    close(found["max_median_ratio"], fmean(ratios))
    close(found["max_median_ratio_max"], max(ratios))


def test_the_medians_disagree_about_a_token_that_is_large_throughout() -> None:
    """5000 beside 50s: massive against the sample's median of 1, not against its own token's median of 50."""
    h = torch.ones(1, 9, 8)
    h[0, 0] = 50.0
    h[0, 0, 2] = 5000.0
    found = F.massive_statistics(F.massive_accumulators(h))
    assert found["massive_per_tensor_median"] == 1
    assert found["massive_per_token_median"] == 0
    close(found["relative_100_per_token_median"], 0.0)
    close(found["relative_1000_per_tensor_median"], 1.0)
    close(found["top_over_median"], [5000.0, 50.0, 50.0])
    assert found["max_median_ratio"] == 1  # token 0 does not count


def test_a_planted_massive_activation_is_no_residual_sink() -> None:
    h = residual((4, 50, 32)) * 0.1
    quiet = F.residual_statistics(F.residual_accumulators(h))["sink_score"]
    h[:, 0, 5] = 5000.0
    assert F.massive_statistics(F.massive_accumulators(h))["massive_per_token_median"] == 1
    assert F.residual_statistics(F.residual_accumulators(h))["sink_score"] == quiet


def test_a_sink_of_zeros_is_not_massive() -> None:
    found = F.massive_statistics(F.massive_accumulators(torch.zeros(2, 3, 4)))
    assert found["massive_per_token_median"] == 0
    assert found["relative_100_per_token_median"] == 0
    assert found["top_over_median"].isnan().all()


def test_fewer_than_three_values_have_no_third_largest() -> None:
    found = F.massive_statistics(F.massive_accumulators(torch.tensor([[[2.0], [4.0]]])))
    close(found["top_over_median"], [2.0, 1.0, math.nan])


# -- the residual sink ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_top_permille_ratio(shape: tuple[int, int, int]) -> None:
    h = residual(shape)
    tokens = [token for sample in h.double().tolist() for token in sample]
    mean_abs = [fmean(abs(token[j]) for token in tokens) for j in range(shape[-1])]
    found = F.residual_statistics(F.residual_accumulators(h))["top_permille"]
    close(found, 1000 * max(mean_abs) / sum(mean_abs))


def test_top_permille_of_many_channels_takes_the_ceiling() -> None:
    mean_abs = torch.ones(2001)
    mean_abs[[5, 77, 200]] = 100.0
    close(F.top_permille_ratio(mean_abs), 1000 * 300 / (300 + 1998))
    close(F.top_permille_ratio(torch.ones(2000)), 1.0)


def test_persistence_over_sites() -> None:
    sites = [residual((4, 50, 32), seed) for seed in range(5)]
    for h, dimension in zip(sites, (13, 13, 6, 13, 6), strict=True):
        h[..., dimension] = 40.0
    sites[3][..., 13] = 0.1  # far above the others on average, but only at every third token
    sites[3][:, 1::3, 13] = 80.0
    found = [F.residual_statistics(F.residual_accumulators(h)) for h in sites]
    mean_abs = torch.stack([s["mean_abs"] for s in found])
    statistics = F.persistence_statistics(mean_abs, torch.stack([s["argmax_share"] for s in found]))
    close(statistics["persistence"], 0.6)
    close(statistics["sink_sites"], 0.4)
    assert F.choose_sink_dimensions(mean_abs, 2).tolist() == [13, 6]
    assert F.choose_sink_dimensions(mean_abs[2]).tolist() == [6]
    broken = F.persistence_statistics(mean_abs * torch.nan, torch.stack([s["argmax_share"] for s in found]))
    assert broken["persistence"].isnan()
    assert broken["sink_sites"].isnan()


def test_a_sink_planted_in_all_tokens_is_found_and_dominates() -> None:
    h = planted_sink()
    found = F.residual_statistics(F.residual_accumulators(h))
    assert found["sink_dimension"] == 13
    assert found["sink_consistency"] == 1
    energy = F.energy_statistics(F.energy_accumulators(h))
    assert energy["energy_top_1"] > 0.95
    fixed = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.tensor([13])))
    torch.testing.assert_close(fixed["energy_share"], energy["energy_top_1"])
    elsewhere = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.tensor([12])))
    assert elsewhere["energy_share"] < 0.01


# -- energy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_top_energy(shape: tuple[int, int, int]) -> None:
    h = residual(shape)
    channels = shape[-1]
    found = F.energy_statistics(F.energy_accumulators(h))
    shares: dict[int, list[float]] = {1: [], 4: [], 16: []}
    peaks = []
    for token in later(h.double().tolist()):
        rms = math.sqrt(fmean(x * x for x in token))
        u = sorted((abs(x) / rms for x in token), reverse=True)
        peaks.append(u[0])
        for k in shares:
            shares[k].append(sum(x * x for x in u[:k]) / channels)
    for k, share in shares.items():
        close(found[f"energy_top_{k}"], fmean(share))
    close(found["peak_mean"], fmean(peaks))
    close(found["peak_max"], max(peaks))
    for name, place in (("p50", 0.5), ("p99", 0.99)):
        exact = sorted(peaks)[math.ceil(place * len(peaks)) - 1]
        assert exact * (1 - 1e-6) <= found[f"peak_{name}"] <= exact * 2 ** (1 / 16) * (1 + 1e-6)


# -- fixed sink dimensions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("dimensions", [[0], [1, 3], [3, 1, 3]])
def test_rescaling_by_fixed_dimensions(shape: tuple[int, int, int], dimensions: list[int]) -> None:
    h = residual(shape)
    channels, members = shape[-1], set(dimensions)
    energies, rescales, outputs = [], [], []
    gain = torch.linspace(0.1, 2, channels)
    for token in later(h.double().tolist()):
        square = [x * x for x in token]
        rest = [x for j, x in enumerate(square) if j not in members]
        energies.append(sum(square[j] for j in members) / sum(square))
        rescales.append(math.sqrt(fmean(rest) / fmean(square)))
        y = [x * float(g) ** 2 for x, g in zip(square, gain, strict=True)]
        outputs.append(sum(y[j] for j in members) / sum(y))
        r2 = energies[-1]
        formula = math.sqrt((1 - r2) * channels / (channels - len(members)))
        assert rescales[-1] == pytest.approx(formula, rel=1e-9)
    index = torch.tensor(dimensions)
    found = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, index))
    close(found["energy_share"], fmean(energies))
    close(found["rescale"], fmean(rescales))
    close(found["rescale_cv"], pstdev(rescales) / fmean(rescales), rtol=1e-4)

    output = torch.nn.functional.rms_norm(h, (channels,), gain)
    from_output = F.output_share_statistics(F.output_share_accumulators(output, index))["output_share"]
    close(from_output, fmean(outputs))
    close(F.rescale_contribute_index(found["energy_share"], from_output), fmean(energies) / fmean(outputs))


def test_a_rescale_factor_next_to_zero_keeps_its_digits() -> None:
    """r^2 = 1 - 1e-8 is 1 in float32; the rest is summed separately."""
    h = torch.ones(1, 5, 16)
    h[..., 3] = 1e4 * math.sqrt(15)
    found = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.tensor([3])))
    close(found["rescale"], math.sqrt(1 / ((15 + 15e8) / 16)), rtol=1e-6)


def test_a_constant_sink_rescales_without_variation_and_a_changing_one_with() -> None:
    rest = torch.ones(2, 9, 8)
    rest[..., ::2] = -1
    constant, changing = rest.clone(), rest.clone()
    constant[..., 3] = 10.0
    changing[..., 3] = torch.arange(9.0) * 5
    dimension = torch.tensor([3])
    assert F.sink_dimension_statistics(F.sink_dimension_accumulators(constant, dimension))["rescale_cv"] < 1e-6
    assert F.sink_dimension_statistics(F.sink_dimension_accumulators(changing, dimension))["rescale_cv"] > 0.5


def test_all_channels_leave_no_rest() -> None:
    h = residual((2, 5, 3))
    found = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.arange(3)))
    close(found["energy_share"], 1.0)
    assert found["rescale"].isnan()


def test_a_suppressed_sink_rescales_and_does_not_contribute() -> None:
    h, gain, dimension = planted_sink(), torch.ones(32), torch.tensor([13])
    gain[13] = 0.004
    energy = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, dimension))["energy_share"]
    output = F.output_share_statistics(F.output_share_accumulators(h * gain, dimension))["output_share"]
    assert F.rescale_contribute_index(energy, output) > 1000
    plain = F.output_share_statistics(F.output_share_accumulators(h, dimension))["output_share"]
    close(F.rescale_contribute_index(energy, plain), 1.0)


# -- the theorem's bound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bound_by_loops(shape: tuple[int, int, int]) -> None:
    h, channels = residual(shape), shape[-1]
    gain = torch.linspace(-1.5, 2, channels) + 0.01
    sink = channels // 2
    output = torch.nn.functional.rms_norm(h.double(), (channels,), gain.double(), eps=0)
    found = F.bound_statistics(F.bound_accumulators(h, output.float(), gain, torch.tensor([sink])))
    largest = max(abs(g) for g in gain.tolist())
    eps = abs(float(gain[sink])) / largest
    ratios = []
    for sample, outputs in zip(h.double().tolist(), output.tolist(), strict=True):
        for token, y in zip(sample, outputs, strict=True):
            r = abs(token[sink]) / math.hypot(*token)
            left = math.sqrt(fmean(x * x for x in y))
            ratios.append(left / (largest * math.sqrt(1 - r * r + eps * eps * r * r)))
    close(found["bound_mean"], fmean(ratios))
    close(found["bound_max"], max(ratios))
    assert found["bound_max"] <= 1 + 1e-6


def test_the_bound_is_tight_where_the_other_gains_are_all_largest_and_broken_by_a_wrong_gain() -> None:
    h, gain, sink = planted_sink(), torch.ones(32), torch.tensor([13])
    gain[13] = 0.004
    output = torch.nn.functional.rms_norm(h, (32,), gain)
    found = F.bound_statistics(F.bound_accumulators(h, output, gain, sink))
    close(found["bound_max"], 1.0)
    close(found["bound_mean"], 1.0)
    assert F.bound_statistics(F.bound_accumulators(h, 2 * output, gain, sink))["bound_max"] > 1.9


# -- norm gates -----------------------------------------------------------------------------------------------------


def pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = fmean(x), fmean(y)
    dx, dy = [a - mean_x for a in x], [b - mean_y for b in y]
    spread = math.sqrt(sum(a * a for a in dx) * sum(b * b for b in dy))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / spread


@pytest.mark.parametrize("shape", [(3, 7, 11), (2, 33, 16), (1, 1, 20)])
def test_gates_against_magnitude(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(9)
    y = torch.randn(shape, generator=generator) * 3
    gate = torch.sigmoid(torch.randn(shape, generator=generator) * 0.3 - y.abs())
    found = F.gate_magnitude_statistics(F.gate_magnitude_accumulators(gate, y))
    magnitudes, gates = y.double().abs().flatten().tolist(), gate.double().flatten().tolist()
    close(found["gate_correlation"], pearson(magnitudes, gates))
    per_token = [
        pearson([abs(a) for a in ys], gs)
        for ys, gs in zip(y.double().flatten(0, 1).tolist(), gate.double().flatten(0, 1).tolist(), strict=True)
    ]
    close(found["gate_token_correlation"], fmean(per_token))
    # Deciles by sorting the values' bins; a value's weight in a decile is the fraction of its bin in it.
    bins = [min(639, max(0, math.floor((math.log2(max(m, 2**-20)) + 20) * 16))) for m in magnitudes]
    count, deciles = len(bins), [0.0] * 10
    below = 0
    for b in sorted(set(bins)):
        members = [g for g, c in zip(gates, bins, strict=True) if c == b]
        for d in range(10):
            lower, upper = max(below, d * count / 10), min(below + len(members), (d + 1) * count / 10)
            deciles[d] += max(0.0, upper - lower) * fmean(members) / (count / 10)
        below += len(members)
    close(found["gate_by_decile"], deciles)
    close(found["gate_top_over_bottom"], deciles[-1] / deciles[0])


def test_deciles_agree_with_sorted_values_up_to_the_bins() -> None:
    generator = torch.Generator().manual_seed(9)
    y = torch.randn(4, 64, 100, generator=generator)
    gate = torch.sigmoid(-y.abs())
    found = F.gate_magnitude_statistics(F.gate_magnitude_accumulators(gate, y))["gate_by_decile"]
    exact = gate.flatten()[y.abs().flatten().argsort()].double().view(10, -1).mean(1)
    close(found, exact.tolist(), rtol=5e-3)
    assert (found.diff() < 0).all()


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_gate_that_hardly_varies(noise: float) -> None:
    """A new GatedNorm sits near 0.5: raw sums of squares in float32 would give any correlation."""
    generator = torch.Generator().manual_seed(9)
    y = torch.randn(4, 64, 100, generator=generator)
    gate = 0.5 + noise * (torch.randn(4, 64, 100, generator=generator) - 2 * y.abs())
    found = F.gate_magnitude_statistics(F.gate_magnitude_accumulators(gate, y))
    if noise:
        expected = pearson(y.double().abs().flatten().tolist(), gate.double().flatten().tolist())
        close(found["gate_correlation"], expected, rtol=1e-4)
    else:
        assert found["gate_correlation"].isnan()
        close(found["gate_by_decile"], [0.5] * 10)


def test_one_gate_per_token_has_no_correlation_within_it() -> None:
    generator = torch.Generator().manual_seed(9)
    y, gate = torch.randn(4, 8, 10, generator=generator), torch.rand(4, 8, 1, generator=generator)
    found = F.gate_magnitude_statistics(F.gate_magnitude_accumulators(gate, y))
    wide = gate.double().expand(4, 8, 10).flatten().tolist()
    close(found["gate_correlation"], pearson(y.double().abs().flatten().tolist(), wide))
    assert found["gate_token_correlation"].isnan()


# -- shapes without others ------------------------------------------------------------------------------------------


def test_one_token_has_no_others_but_extremes() -> None:
    h, dimension = residual((2, 1, 8)), torch.tensor([0])
    for statistics in (
        F.kurtosis_statistics(F.kurtosis_accumulators(h)),
        F.energy_statistics(F.energy_accumulators(h)),
        F.sink_dimension_statistics(F.sink_dimension_accumulators(h, dimension)),
        F.output_share_statistics(F.output_share_accumulators(h, dimension)),
    ):
        assert statistics.pop("nonfinite") == 0
        assert all(x.isnan().all() for x in statistics.values())
    massive = F.massive_statistics(F.massive_accumulators(h))
    assert massive["max_median_ratio"].isnan()
    assert massive["max_median_ratio_max"].isnan()
    assert massive["top_over_median"].isfinite().all()


@pytest.mark.parametrize("value", [3.0, 0.1, -7.3])
def test_constant_input(value: float) -> None:
    h = torch.full((2, 5, 11), value)
    kurtosis = F.kurtosis_statistics(F.kurtosis_accumulators(h))
    assert kurtosis["kurtosis_token"].isnan()
    close(kurtosis["kurtosis_neuron"], 1.0)
    massive = F.massive_statistics(F.massive_accumulators(h))
    assert massive["max_median_ratio"] == 1
    assert massive["relative_100_per_token_median"] == 0
    energy = F.energy_statistics(F.energy_accumulators(h))
    close(energy["energy_top_4"], 4 / 11)
    close(energy["peak_mean"], 1.0)
    fixed = F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.tensor([2])))
    close(fixed["rescale"], 1.0)
    close(fixed["rescale_cv"], 0.0)


def test_a_token_of_zeros_has_no_energy_fractions() -> None:
    h = residual((1, 4, 8))
    h[0, 2] = 0
    assert F.energy_statistics(F.energy_accumulators(h))["energy_top_1"].isnan()
    assert F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.tensor([1])))["rescale"].isnan()


def test_one_channel() -> None:
    h = residual((2, 5, 1))
    assert F.residual_statistics(F.residual_accumulators(h))["sink_score"] == 1
    assert F.energy_statistics(F.energy_accumulators(h))["energy_top_16"] == 1
    assert F.kurtosis_statistics(F.kurtosis_accumulators(h))["kurtosis_neuron"] == 1
    assert F.sink_dimension_statistics(F.sink_dimension_accumulators(h, torch.tensor([0])))["rescale"].isnan()
