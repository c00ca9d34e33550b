"""Every definition against an independent, naive computation in float64, on random and on planted data."""

import math
import statistics as python_statistics

import pytest
import torch

from sinks.stats import functional
from sinks.stats.accumulators import add


def random_residual(batch: int = 3, length: int = 7, channels: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(batch, length, channels, generator=generator) * torch.linspace(0.5, 2, channels)


def naive_residual(h: torch.Tensor) -> dict[str, float | list[float]]:
    """Plain Python over every token and channel."""
    rows = h.double().tolist()
    channels = len(rows[0][0])
    others = [token for sample in rows for token in sample[1:]]
    mean_abs = [sum(abs(token[j]) for token in others) / len(others) for j in range(channels)]
    ordered = sorted(mean_abs)
    sink = mean_abs.index(max(mean_abs))
    largest = [max(range(channels), key=lambda j: abs(token[j])) for token in others]
    kurtosis = []
    for token in others:
        mean = sum(token) / channels
        m2 = sum((x - mean) ** 2 for x in token) / channels
        kurtosis.append(sum((x - mean) ** 4 for x in token) / channels / m2**2)
    medians = [sorted(abs(x) for x in token)[(channels - 1) // 2] for token in others]
    first = max(abs(x) for sample in rows for x in sample[0])
    elsewhere = max(abs(x) for token in others for x in token)
    return {
        "mean_abs": mean_abs,
        "sink_dimension": sink,
        "sink_score": mean_abs[sink] / ordered[(channels - 1) // 2],
        "sink_consistency": largest.count(sink) / len(others),
        "kurtosis": python_statistics.fmean(kurtosis),
        "max_abs": [first, elsewhere],
        "max_over_median": max(first, elsewhere) / python_statistics.fmean(medians),
        "nonfinite": 0,
    }


def of(h: torch.Tensor) -> dict[str, torch.Tensor]:
    return functional.residual_statistics(functional.residual_accumulators(h))


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 7, 11), (2, 33, 16)])
def test_residual_statistics_agree_with_a_naive_computation(shape: tuple[int, int, int]) -> None:
    h = random_residual(*shape)
    found = of(h)
    for name, expected in naive_residual(h).items():
        torch.testing.assert_close(found[name].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_accumulators_of_batches_add_up() -> None:
    h = random_residual(5)
    total = add(add(None, functional.residual_accumulators(h[:2])), functional.residual_accumulators(h[2:]))
    for name, accumulator in functional.residual_accumulators(h).items():
        torch.testing.assert_close(total[name], accumulator, rtol=1e-6, atol=1e-6)


def test_a_planted_residual_sink_is_found_at_its_dimension() -> None:
    h = random_residual(4, 50, 32) * 0.1
    h[:, 1:, 13] = 40.0
    found = of(h)
    assert found["sink_dimension"] == 13
    assert found["sink_consistency"] == 1
    assert found["sink_score"] > 100


def test_a_massive_activation_of_token_0_is_not_a_residual_sink() -> None:
    h = random_residual(4, 50, 32)
    before = of(h)["sink_score"]
    h[:, 0, 5] = 5000.0
    found = of(h)
    assert found["sink_score"] == before
    assert found["max_abs"][0] == 5000
    assert found["max_abs"][1] < 20


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.99, 0.999])
def test_histogram_quantiles_are_within_one_bin(quantile: float) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).exp()
    found = functional.histogram_quantile(functional.magnitude_histogram(x), quantile)
    exact = (
        torch.quantile(x[:100_000].double(), quantile)
        if quantile < 0.9
        else x.double().sort().values[int(quantile * len(x))]
    )
    assert float(found) == pytest.approx(float(exact), rel=2 ** (1 / functional.HISTOGRAM_BINS_PER_OCTAVE) - 1 + 0.01)


def test_one_token_has_no_others() -> None:
    found = of(random_residual(2, 1, 8))
    assert math.isnan(found["sink_score"])
    assert found["max_abs"][1] == 0
    assert found["max_abs"][0] > 0


def test_nonfinite_values_are_reported_not_averaged_away() -> None:
    h = random_residual()
    h[0, 3, 2] = math.nan
    h[1, 2, 1] = math.inf
    found = of(h)
    assert found["nonfinite"] == 2
    assert not math.isfinite(found["sink_score"])
    assert not math.isfinite(found["max_over_median"])


def test_a_constant_input_has_no_outliers() -> None:
    found = of(torch.full((2, 5, 8), 3.0))
    assert found["sink_score"] == 1
    assert found["max_over_median"] == 1
    assert math.isnan(found["kurtosis"])


def planted_masses(batch: int, heads: int, length: int) -> torch.Tensor:
    """A[i, 0] of heads that put exactly head/10 on the first token, and all of row 0."""
    mass = (torch.arange(heads).float() / 10).view(1, heads, 1).repeat(batch, 1, length)
    mass[..., 0] = 1
    return mass


def test_first_token_mass_excludes_the_trivial_row_and_the_sink_ratio_does_not() -> None:
    mass = planted_masses(batch=2, heads=10, length=5)
    found = functional.attention_statistics(functional.attention_accumulators(mass, torch.zeros_like(mass)))
    torch.testing.assert_close(found["first_token_mass"], torch.arange(10) / 10)
    alpha = [(1 + 4 * head / 10) / 5 for head in range(10)]
    for eps in (0.3, 0.8):
        assert found[f"sink_ratio_{eps}"].tolist() == [float(a > eps) for a in alpha]


def test_learned_sink_mass_is_the_mean_over_all_queries() -> None:
    learned = torch.rand(3, 2, 5)
    found = functional.attention_statistics(functional.attention_accumulators(torch.rand(3, 2, 5), learned))
    torch.testing.assert_close(found["learned_sink_mass"], learned.mean(dim=(0, 2)))


def test_value_norm_ratio() -> None:
    v = torch.randn(2, 3, 6, 4)
    v[:, :, 0] *= 0.01
    accumulators = functional.value_accumulators(v)
    naive = torch.zeros(3, dtype=torch.float64)
    for b in range(2):
        for head in range(3):
            norms = [math.sqrt(sum(x * x for x in v[b, head, t].tolist())) for t in range(6)]
            naive[head] += norms[0] / sorted(norms[1:])[2] / 2
    torch.testing.assert_close(
        (accumulators["ratio_sum"] / accumulators["samples"]).double(), naive, rtol=1e-5, atol=1e-7
    )
    assert functional.value_accumulators(v[:, :, :1])["samples"] == 0


def test_gain_at_sink_is_relative_to_the_median() -> None:
    gain = torch.tensor([1.0, -2.0, 0.5, 2.0, 2.0])
    assert functional.gain_at_sink(gain, torch.tensor(2)) == 0.25


def test_gate_accumulators() -> None:
    headwise, elementwise = torch.rand(2, 3, 4), torch.rand(2, 3, 4, 5)
    for gate in (headwise, elementwise):
        accumulators = functional.attention_gate_accumulators(gate)
        found = functional.attention_gate_statistics(accumulators)["gate_mean"]
        torch.testing.assert_close(found, gate.transpose(0, 1).flatten(1).mean(1))
    channelwise = torch.rand(2, 4, 6)
    accumulators = functional.norm_gate_accumulators(channelwise, 6)
    found = functional.norm_gate_statistics(accumulators)["gate_by_channel"]
    torch.testing.assert_close(found, channelwise.mean(dim=(0, 1)))


def test_a_fraction_weighs_values_not_batches() -> None:
    marked = torch.tensor([[True, False], [False, False], [True, True]])
    parts = [functional.share_accumulators(part) for part in (marked[:1], marked[1:])]
    assert float(functional.share_statistics(add(*parts))["share"]) == 0.5
